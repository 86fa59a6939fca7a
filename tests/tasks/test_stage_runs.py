"""A stage on another pool is waited for, repeated when its machine goes away, and named when it fails."""

from __future__ import annotations

import uuid
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State
from prefect.states import Completed, Crashed, Failed

from crucible.errors import ServiceError
from crucible.jobs.records import JobSpec
from crucible.resources import Resources
from tasks import deployment_runs, stage_runs
from tests.supervision.deployed import deployed_run

pytestmark = pytest.mark.usefixtures("prefect_api")


@pytest.fixture
def ends(monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[dict[str, Any]]]:
    """Let the stage's runs end in these states; returns what was asked of each."""

    def prepare(*states: State) -> list[dict[str, Any]]:
        left, asked = list(states), []

        def start(deployment: str, **given: Any) -> Any:
            asked.append({"deployment": deployment, **given})
            with get_client(sync_client=True) as client:
                return client.read_flow_run(uuid.UUID(deployed_run(left.pop(0))))

        monkeypatch.setattr(deployment_runs, "run_deployment", start)
        return asked

    monkeypatch.setattr(stage_runs, "get_run_logger", lambda: SimpleNamespace(info=print, warning=print))
    return prepare


@flow(name="waits-for-a-stage", persist_result=False)
def waits() -> None:
    stage_runs.run_stage("evaluate", "docker-gpu", JobSpec(job_id="mine"), {"job": "mine"}, Resources(gpus=1))


def test_a_crashed_stage_is_repeated_and_a_failed_one_is_not(ends: Callable[..., list[dict[str, Any]]]) -> None:
    asked = ends(Crashed(message="the machine went away"), Completed())
    waits()
    assert [entry["deployment"] for entry in asked] == ["evaluate/docker-gpu"] * 2
    assert len({entry["idempotency_key"] for entry in asked}) == 2
    assert asked[0]["job_variables"] == {"gpus": "1"}
    assert {"job:mine", "stage:evaluate", "pool:docker-gpu"} <= set(asked[0]["tags"])
    ends(Failed(message="no such checkpoint"))
    with pytest.raises(ServiceError, match="evaluate on docker-gpu ended as Failed: no such checkpoint"):
        waits()
