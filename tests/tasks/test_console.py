"""A refused flow run names what was wrong with it, and no password of its parameters."""

from __future__ import annotations

import pytest
from prefect.exceptions import ParameterTypeError

from flows.train_nanogpt import train_nanogpt


def test_the_log_of_a_refused_run_keeps_the_password_of_a_url_to_itself(caplog: pytest.LogCaptureFixture) -> None:
    source = "http://me:canary-7@data.example.com/text.txt"
    with pytest.raises(ParameterTypeError) as refused:
        train_nanogpt.validate_parameters({"preset": "debug", "dataset": {"source": source}})
    assert "http://data.example.com/text.txt" in caplog.text
    assert "canary-7" not in caplog.text + str(refused.value)
