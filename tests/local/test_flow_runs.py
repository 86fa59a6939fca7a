"""Starting a deployment where the server's answers get lost."""

from __future__ import annotations

import json

import httpx
import pytest

from crucible.errors import ConfigError, StartUnknown
from crucible.local import flow_runs
from crucible.local.flow_runs import start_flow_run


class Server:
    """Creates a run for each new idempotency key, as Prefect does, and answers requests for one as it is told."""

    def __init__(self, *answers: str) -> None:
        self._answers = list(answers)
        self.runs: dict[str, str] = {}

    def __call__(self, request: httpx.Request) -> httpx.Response:
        if request.method == "GET":
            return httpx.Response(200, json={"id": "a-deployment"})
        answer = self._answers.pop(0)
        if answer == "refused":
            return httpx.Response(409, json={"detail": "job: wrong"})
        if answer == "away":
            raise httpx.ConnectError("refused")
        key = json.loads(request.content).get("idempotency_key") or f"none-{len(self.runs)}"
        run = self.runs.setdefault(key, f"run-{len(self.runs)}")
        if answer == "lost":
            raise httpx.ReadTimeout("the answer got lost")
        return httpx.Response(502) if answer == "bad gateway" else httpx.Response(201, json={"id": run})

    def start(self) -> str:
        with httpx.Client(transport=httpx.MockTransport(self), base_url="http://server/api") as api:
            return start_flow_run(api, "train-script", {"job": "mine"}, "mine")


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(flow_runs, "PAUSES_SECONDS", (0.0, 0.0))


@pytest.mark.parametrize("answers", [["lost", "made"], ["bad gateway", "lost", "made"], ["away", "made"]])
def test_a_lost_answer_gives_one_run(answers: list[str]) -> None:
    server = Server(*answers)
    assert server.start() == "run-0"
    assert len(server.runs) == 1


def test_a_run_that_may_have_been_started_is_not_said_to_be_missing() -> None:
    with pytest.raises(StartUnknown, match="it may have started the run mine or not"):
        Server("lost", "lost", "lost").start()


def test_what_the_server_refuses_is_not_asked_again() -> None:
    with pytest.raises(ConfigError, match="job: wrong"):
        Server("refused").start()
