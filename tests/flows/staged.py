"""What tests do to a set-up that `crucible up` brought up: start runs on it, wait for them, cancel them."""

from __future__ import annotations

import shlex
import time
from collections.abc import Callable
from typing import Any

from crucible.jobs.job import Job
from crucible.jobs.records import EndReason
from crucible.local.access import connect
from crucible.local.state import State
from crucible.rehearsal.drill.stage import Stage
from crucible.supervision.heartbeat import supervisor_heartbeats
from tests.agent.harness import scripted


def api(stage: Stage, method: str, path: str, **arguments: Any) -> Any:
    with connect(stage.home, State.load(stage.home).api_url or "", seconds=60) as client:
        response = client.request(method, path, **arguments)
    response.raise_for_status()
    return response.json()


def start_endless(stage: Stage, job: str, **given: str) -> str:
    """A run of `train-script` as the UI starts it, of a workload that waits most of the time; returns its id."""
    deployment = api(stage, "GET", "/deployments/name/train-script/train-script")["id"]
    command = shlex.join(scripted(steps=1_000_000, every=10, seconds=0.1))
    parameters = {"command": command, "job": job, "project": "demo", "owner": "ada", **given}
    run = {"parameters": parameters, "state": {"type": "SCHEDULED"}}
    return str(api(stage, "POST", f"/deployments/{deployment}/create_flow_run", json=run)["id"])


def eventually(holds: Callable[[], Any], what: str, seconds: float = 400, look_seconds: float = 0.1) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(look_seconds)
    return found


def final_state(stage: Stage, run: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        state = api(stage, "GET", f"/flow_runs/{run}")["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    state: dict[str, Any] = eventually(ended, "a final state", look_seconds=0.5)  # each look is a request
    return state


def cancel(stage: Stage, run: str) -> None:
    """As the UI does it, and `prefect flow-run cancel` as well."""
    cancelling = {"state": {"type": "CANCELLING", "name": "Cancelling"}, "force": True}
    api(stage, "POST", f"/flow_runs/{run}/set_state", json=cancelling)


def require_cancelled(stage: Stage, run: str, job: Job) -> None:
    """The newest attempt saves, the run is over, and so is the supervisor's heartbeat."""
    outcome = eventually(lambda: job.attempts()[-1].read_outcome(), "the attempt's end")
    assert outcome.end_reason is EndReason.CANCELLED
    assert outcome.committed_step == outcome.step > 0
    assert final_state(stage, run)["type"] == "CANCELLED"
    eventually(lambda: not heartbeat_of(stage, run), "its last sign of life")


def heartbeat_of(stage: Stage, run: str) -> bool:
    return run in {beat.flow_run_id for beat in supervisor_heartbeats(stage.store)}
