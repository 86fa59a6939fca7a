"""The spot market's price of a zone, asked for over HTTP; an attempt never fails for want of it."""

from __future__ import annotations

import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from crucible.pools.aws.prices import spot_price
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


def test_an_answer_that_is_no_answer_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    class Broken(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            self.send_response(500)
            self.end_headers()
            self.wfile.write(b"<!doctype html><title>500 Internal Server Error</title>")

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Broken) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_address[1]}")
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")
        assert spot_price("g5.xlarge", "us-east-1b") is None
        server.shutdown()
