"""The spot market's price of a zone, asked for over HTTP; an attempt never fails for want of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from crucible.aws.prices import spot_price
from crucible.rehearsal.aws.client import AwsRehearsal


def test_the_market_is_asked_and_its_silence_is_no_error(
    cloud: AwsRehearsal, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    for name, value in cloud.environment.items():
        monkeypatch.setenv(name, value)
    price = spot_price("g5.xlarge", "us-east-1b")
    assert price is not None
    assert price > 0
    cloud.fault("expired_credentials", whose="worker")
    try:
        assert spot_price("g5.xlarge", "us-east-1b") is None
    finally:
        cloud.fault("expired_credentials", whose="worker", on=False)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert spot_price("g5.xlarge", "us-east-1b") is None
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert spot_price("g5.xlarge", "us-east-1b") is None
