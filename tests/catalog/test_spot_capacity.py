"""What AWS says of spot capacity, asked for over HTTP; what it does not say is not known, and no error."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs

import pytest

from crucible.catalog.ec2 import spot_capacity
from tests.catalog.offers import LOCAL, MODAL, ON_DEMAND, SPOT

L4 = [replace(SPOT, instance=f"g6.{size}xlarge") for size in ("", 2, 4)]
T4 = [replace(SPOT, instance=f"g4dn.{size}xlarge", gpu="T4") for size in ("", 2, 4)]
H100 = [replace(SPOT, instance="p5.4xlarge", gpu="H100")]
NAMESPACE = "http://ec2.amazonaws.com/doc/2016-11-15/"
ANSWER = "GetSpotPlacementScoresResponse"
NOTHING_YET = f'<{ANSWER} xmlns="{NAMESPACE}"><nextToken>2</nextToken></{ANSWER}>'
"""A first page without an entry, as AWS may send it."""
OFFERS = [*L4, ON_DEMAND, MODAL, LOCAL]


@pytest.fixture
def scores(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, int | None]]:
    """Scores by the first machine type asked about; None is a refusal."""
    scores: dict[str, int | None] = {}

    class Ec2(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked = parse_qs(self.rfile.read(int(self.headers["Content-Length"])).decode())
            assert asked["Action"] == ["GetSpotPlacementScores"]
            score = scores[asked["InstanceType.1"][0]]
            if score is not None and "NextToken" not in asked:
                self.answer(200, NOTHING_YET)
                return
            body = (
                f'<GetSpotPlacementScoresResponse xmlns="{NAMESPACE}"><spotPlacementScoreSet>'
                f"<item><region>us-east-1</region><score>{score}</score></item>"
                "</spotPlacementScoreSet></GetSpotPlacementScoresResponse>"
                if score is not None
                else "<Response><Errors><Error><Code>UnauthorizedOperation</Code><Message/></Error></Errors></Response>"
            )
            self.answer(200 if score is not None else 403, body)

        def answer(self, status: int, body: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: Any) -> None:
            """Quiet."""

    server = ThreadingHTTPServer(("127.0.0.1", 0), Ec2)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setattr("crucible.catalog.ec2.TIMEOUT_SECONDS", 60)
    monkeypatch.setenv("AWS_ENDPOINT_URL", f"http://127.0.0.1:{server.server_port}")
    yield scores
    server.shutdown()
    server.server_close()


def test_high_scores_are_yes_low_ones_no_and_what_lies_between_is_unknown(scores: dict[str, int | None]) -> None:
    for score, known in ((7, True), (5, None), (3, False)):
        scores["g6.2xlarge"] = score
        answer = spot_capacity(OFFERS)
        assert answer == ({} if known is None else dict.fromkeys(("g6.xlarge", "g6.2xlarge", "g6.4xlarge"), known))


def test_a_low_score_for_one_type_alone_says_nothing(scores: dict[str, int | None]) -> None:
    scores["p5.4xlarge"] = 1
    assert spot_capacity(H100) == {}
    scores["p5.4xlarge"] = 8
    assert spot_capacity(H100) == {"p5.4xlarge": True}


def test_a_refusal_leaves_what_is_known_and_is_no_error(scores: dict[str, int | None]) -> None:
    scores.update({"g6.2xlarge": 9, "g4dn.2xlarge": None})
    assert set(spot_capacity([*L4, *T4])) == {offer.instance for offer in L4}


def test_without_credentials_nobody_is_asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("AWS_SHARED_CREDENTIALS_FILE", "AWS_CONFIG_FILE"):
        monkeypatch.setenv(name, str(tmp_path / "none"))
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name, raising=False)
    assert spot_capacity(OFFERS) == {}


def test_an_endpoint_that_is_no_address_is_no_error(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "test")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "localhost:4566")
    assert spot_capacity(OFFERS) == {}
