"""Job variables of the supervising run reach its attempts, or are refused by name."""

from __future__ import annotations

from types import SimpleNamespace
from typing import TYPE_CHECKING

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from crucible.errors import ConfigError
from tasks import job_variables

if TYPE_CHECKING:
    from tests.conftest import PrefectServer

KNOWN = ["command", "env", "gpus", "image"]


def test_what_the_pool_knows_is_passed_on_and_the_supervisors_own_is_not() -> None:
    given = {"env": {"FOO": "bar"}, "gpus": "2", "command": "python supervise.py"}
    assert job_variables.passed_on(given, KNOWN, "docker-gpu") == {"env": {"FOO": "bar"}, "gpus": "2"}


def test_what_the_pool_does_not_know_is_refused_by_name() -> None:
    with pytest.raises(ConfigError, match=r"job variable memory: the pool modal has none .* it has env, gpus, image"):
        job_variables.passed_on({"memory": "24g"}, KNOWN, "modal")


def test_the_pools_own_template_decides(prefect_server: PrefectServer, monkeypatch: pytest.MonkeyPatch) -> None:
    prefect_server.prefect("work-pool", "create", "with-variables", "--type", "process")
    with temporary_settings({PREFECT_API_URL: prefect_server.api_url}):
        monkeypatch.setattr(job_variables, "flow_run", SimpleNamespace(job_variables={"env": {"FOO": "bar"}}))
        assert job_variables.given_for("with-variables") == {"env": {"FOO": "bar"}}
        monkeypatch.setattr(job_variables, "flow_run", SimpleNamespace(job_variables={"gpus": "2"}))
        with pytest.raises(ConfigError, match="job variable gpus"):
            job_variables.given_for("with-variables")
