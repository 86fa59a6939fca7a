"""Which tasks of cancelled runs the ECS worker stops. `test_ecs_pool` tries it on the pool itself."""

from __future__ import annotations

import asyncio
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any
from uuid import UUID, uuid4

import pytest
from prefect.client.schemas.objects import FlowRun, State, WorkPool
from prefect.exceptions import InfrastructureNotFound
from prefect.states import Cancelled, Cancelling

from crucible.pools.aws.cancellation import stop_waiting_tasks


class Worker:
    """What the watch asks of Prefect's ECS worker, with an ECS that forgot some tasks and refuses to stop others."""

    name, backend_id, work_pool = "worker", None, WorkPool(name="ec2-spot", type="crucible-ecs")

    def __init__(self, *runs: FlowRun) -> None:
        self.runs, self.stopped, self.asked = runs, list[str](), list[str]()
        self.client = SimpleNamespace(read_flow_runs=self._read, set_flow_run_state=self._set)
        self.job_configuration = SimpleNamespace(resolve_for_flow_run=self._resolve)

    async def _read(self, flow_run_filter: Any, limit: int = 200, offset: int = 0, **more: Any) -> list[FlowRun]:
        """As the server filters and pages."""
        wanted = flow_run_filter
        after = {name: getattr(wanted, name) for name in ("expected_start_time", "end_time") if getattr(wanted, name)}
        found = [
            run
            for run in self.runs
            if run.state_type in wanted.state.type.any_
            and all((at := getattr(run, name)) is not None and at >= time.after_ for name, time in after.items())
        ]
        return found[offset : offset + limit]

    async def _resolve(self, run: FlowRun, **more: Any) -> None:
        return None

    async def _set(self, run: UUID, state: State[Any], force: bool) -> None:
        assert state.is_cancelled()
        self.stopped.append(str(run))

    async def kill_infrastructure(self, identifier: str, configuration: None) -> None:
        self.asked.append(identifier)
        if identifier == "forgotten":
            raise InfrastructureNotFound(identifier)
        if identifier == "refused":
            raise PermissionError("not authorized to perform ecs:StopTask")
        self.stopped.append(identifier)

    def turn(self, stopped: set[UUID]) -> None:
        asyncio.run(stop_waiting_tasks(self, stopped))  # type: ignore[arg-type]


def cancelled(task: str | None) -> FlowRun:
    """A run that was cancelled before it started, while it waited as that task."""
    at = datetime.now(UTC)
    times = {"start_time": at, "end_time": at, "expected_start_time": at}  # as Prefect sets them
    return ended(Cancelled(), infrastructure_pid=task, **times)


def ended(state: State[Any], **more: Any) -> FlowRun:
    return FlowRun(id=uuid4(), flow_id=uuid4(), state=state, state_type=state.type, **more)


def test_a_task_that_cannot_be_stopped_keeps_no_other_one_alive(caplog: pytest.LogCaptureFixture) -> None:
    cancelling = ended(Cancelling())
    worker = Worker(cancelled("refused"), cancelled("forgotten"), cancelled("waiting"), cancelling)
    stopped: set[UUID] = set()
    worker.turn(stopped)
    assert worker.stopped == [str(cancelling.id), "waiting"]
    assert "not authorized to perform ecs:StopTask" in caplog.text
    worker.turn(stopped)
    assert worker.asked == ["refused", "forgotten", "waiting", "refused"]  # only what may still run


def test_a_run_cancelled_before_its_task_is_known_is_looked_at_again() -> None:
    run, stopped = cancelled(None), set[UUID]()
    Worker(run).turn(stopped)
    worker = Worker(run.model_copy(update={"infrastructure_pid": "waiting"}))
    worker.turn(stopped)
    assert worker.stopped == ["waiting"]


def test_a_run_that_has_started_ends_by_its_own_agent() -> None:
    run = cancelled("running")
    assert run.start_time is not None
    worker = Worker(run.model_copy(update={"start_time": run.start_time.replace(year=2020)}))
    worker.turn(set())
    assert worker.asked == []


def test_runs_are_found_that_waited_for_hours_before_they_were_cancelled_and_beyond_a_page() -> None:
    ages = {"expected_start_time": datetime.now(UTC) - timedelta(hours=3)}  # in the queue of a pool with a limit
    cancelling = ended(Cancelling(), infrastructure_pid="queued for long", **ages)
    worker = Worker(cancelling, *(cancelled(f"task {number}") for number in range(250)))
    worker.turn(set())
    assert worker.stopped[:2] == ["queued for long", str(cancelling.id)]
    assert len(worker.asked) == 251
