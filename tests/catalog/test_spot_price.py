"""The spot market's price of a zone, requested over HTTP: each way to get none is one exception that says why."""

from __future__ import annotations

import doctest
import threading
from datetime import UTC, datetime
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import boto3
import pytest
from botocore.stub import Stubber

from crucible.catalog import ec2
from crucible.catalog.ec2 import PriceUnavailable, spot_price


def assert_unavailable() -> None:
    with pytest.raises(PriceUnavailable, match=r"spot price of g5\.xlarge in us-east-1b is not available: .+"):
        spot_price("g5.xlarge", "us-east-1b")


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "test")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "test")


def test_without_network_or_credentials_that_is_reported(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from moto import mock_aws  # here: it loads for two seconds, in each process that collects this file

    with mock_aws():
        assert spot_price("g5.xlarge", "us-east-1b") > 0
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    assert_unavailable()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "none"))
    monkeypatch.setenv("AWS_CONFIG_FILE", str(tmp_path / "none"))
    assert_unavailable()


def test_a_broken_answer_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
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
        assert_unavailable()
        server.shutdown()


def test_local_zones_belong_to_their_region() -> None:
    assert doctest.testmod(ec2).failed == 0
    assert ec2.region_of("us-west-2-lax-1a") == "us-west-2"


def test_a_price_on_the_second_page_is_found_and_none_at_all_is_reported(monkeypatch: pytest.MonkeyPatch) -> None:
    client = boto3.client("ec2", region_name="us-west-2", aws_access_key_id="test", aws_secret_access_key="test")
    price = {"InstanceType": "g5.xlarge", "SpotPrice": "0.4", "Timestamp": datetime(2026, 5, 7, tzinfo=UTC)}
    asked: list[str] = []

    class Session:
        def client(self, name: str, region_name: str, config: object) -> object:
            asked.append(region_name)
            return client

    monkeypatch.setattr(boto3, "Session", Session)
    with Stubber(client) as stub:
        stub.add_response("describe_spot_price_history", {"SpotPriceHistory": [], "NextToken": "more"})
        stub.add_response("describe_spot_price_history", {"SpotPriceHistory": [price]})
        stub.add_response("describe_spot_price_history", {"SpotPriceHistory": []})
        assert spot_price("g5.xlarge", "us-west-2-lax-1a") == 0.4
        with pytest.raises(PriceUnavailable, match="AWS has no price on record"):
            spot_price("g5.xlarge", "us-west-2-lax-1a")
    assert asked == ["us-west-2", "us-west-2"]
