"""Following a run from the command line, through an outage of the server and to an end."""

from __future__ import annotations

import itertools
from types import SimpleNamespace

import httpx
import pytest

from crucible.cli import quickstart, run, tune
from crucible.errors import ServiceError
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec
from crucible.local.follow import read_states
from crucible.store import Store


@pytest.mark.parametrize("follow", ["run", "quickstart", "tune"])
def test_whoever_follows_outlasts_an_outage_of_the_server_and_is_notified_of_it(
    follow: str, store: Store, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    Job.create(store, JobSpec(job_id="mine"))
    busy = [httpx.Response(429), httpx.Response(408)]  # "later", not "no"
    outage = [httpx.ConnectError("refused"), httpx.Response(502), *busy] * 30
    answers = iter(["RUNNING", *outage, "RUNNING", "COMPLETED"])

    def answer(request: httpx.Request) -> httpx.Response:
        match next(answers):
            case str(state):
                return httpx.Response(200, json={"state": {"type": state, "name": state.title(), "message": ""}})
            case httpx.Response() as response:
                return response
            case Exception() as error:
                raise error

    clock = itertools.count()
    fake_time = SimpleNamespace(monotonic=lambda: next(clock) * 5.0, sleep=lambda _: None)
    monkeypatch.setattr("crucible.local.follow.time", fake_time)
    monkeypatch.setattr("crucible.local.follow_sweep.time", fake_time)
    api = httpx.Client(transport=httpx.MockTransport(answer), base_url="http://server/api")
    monkeypatch.setattr("crucible.local.access.connect_here", lambda **_: api)
    match follow:
        case "run":
            assert run.follow_run("a-run", store, "mine").state == "COMPLETED"
        case "quickstart":
            assert quickstart.watch(api, "a-run", store, "mine").job_id == "mine"
        case _:
            assert tune._follow(api, "a-run", store, "mine").state == "COMPLETED"
    printed = capsys.readouterr().err
    look = "crucible sweeps show mine" if follow == "tune" else "crucible jobs show mine"
    assert printed.count(f"look at it later with: {look}") == 1
    assert printed.count("the Prefect server answers again") == 1
    assert "http://server/api has not answered since" in printed


def test_following_ends_with_the_reason_when_the_server_no_longer_has_the_run(store: Store) -> None:
    gone = httpx.MockTransport(lambda _: httpx.Response(404))
    with (
        httpx.Client(transport=gone, base_url="http://server/api") as api,
        pytest.raises(ServiceError, match=r"does not show flow run a-run: .*404"),
    ):
        list(read_states(api, "a-run"))
