"""Cancelling a run that waits for a machine: its ECS task must go, or it brings up a machine for nothing.

Prefect's worker watches a run for cancellation only while it submits it. The ECS worker is done with that as soon as
RunTask has answered, so a run that is cancelled while its task is PROVISIONING would stay Cancelling for ever (prefect
3.8, prefect-aws 0.7.12). Once a run has started, its own process handles the cancellation, and this keeps out of it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Any
from uuid import UUID

if TYPE_CHECKING:
    from prefect.client.schemas.objects import FlowRun

POLL_SECONDS = 3.0
LOOK_BACK = timedelta(hours=1)
"""ECS gives up on a task after half an hour by itself."""
logger = logging.getLogger("prefect.workers.ecs.cancellation")


def install() -> None:
    """Let every ECS worker of this process stop the tasks of cancelled runs that never started. Again does nothing."""
    from prefect_aws.workers import ECSWorker

    worker_type: Any = ECSWorker
    begin = worker_type._setup_cancellation_observer
    if getattr(begin, "stops_waiting_tasks", False):
        return

    async def begin_watching(worker: Any) -> None:
        await begin(worker)
        if worker._work_pool is not None and not getattr(worker, "_stops_waiting_tasks", False):
            worker._stops_waiting_tasks = True
            await worker._exit_stack.enter_async_context(_watching(worker))

    begin_watching.stops_waiting_tasks = True  # type: ignore[attr-defined]
    worker_type._setup_cancellation_observer = begin_watching


@contextlib.asynccontextmanager
async def _watching(worker: Any) -> AsyncIterator[None]:
    task = asyncio.create_task(_watch(worker))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _watch(worker: Any) -> None:
    stopped: set[UUID] = set()
    while True:
        try:
            await _stop_waiting_tasks(worker, stopped)
        except Exception as error:  # noqa: BLE001 - the server or AWS is away: tried again at the next turn
            logger.warning("could not look for cancelled runs: %s", error)
        await asyncio.sleep(POLL_SECONDS)


async def _stop_waiting_tasks(worker: Any, stopped: set[UUID]) -> None:
    from prefect.client.schemas.filters import (
        FlowRunFilter,
        FlowRunFilterExpectedStartTime,
        FlowRunFilterState,
        FlowRunFilterStateType,
        WorkPoolFilter,
        WorkPoolFilterName,
    )
    from prefect.client.schemas.objects import StateType
    from prefect.exceptions import InfrastructureNotFound

    runs = await worker.client.read_flow_runs(
        work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[worker._work_pool_name])),
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.CANCELLING, StateType.CANCELLED])),
            expected_start_time=FlowRunFilterExpectedStartTime(after_=datetime.now(UTC) - LOOK_BACK),
        ),
    )
    for run in runs:
        # Of a run that goes straight from Pending to Cancelled, Prefect says it started at that moment.
        started = run.start_time is not None and run.start_time != run.end_time
        if run.id in stopped or started:
            continue
        try:
            await _stop_task(worker, run)
        except InfrastructureNotFound:
            pass  # ECS forgets a task an hour after its end
        except Exception as error:  # noqa: BLE001 - the other runs' tasks cost money too
            logger.warning("the task of cancelled flow run %s is not stopped yet: %s", run.id, error)
            continue
        if run.state_type == StateType.CANCELLED and run.infrastructure_pid:
            stopped.add(run.id)


async def _stop_task(worker: Any, run: FlowRun) -> None:
    """Raises InfrastructureNotFound if ECS does not know the task."""
    from prefect.client.schemas.objects import StateType

    if run.state_type == StateType.CANCELLING:
        await worker._cancel_run(run.id)  # stops the task and says so on the run; tried again if it fails
    elif run.infrastructure_pid:
        configuration = await worker.job_configuration.resolve_for_flow_run(
            run,
            client=worker.client,
            work_pool=worker.work_pool,
            worker_name=worker.name,
            worker_id=worker.backend_id,
        )
        await worker.kill_infrastructure(run.infrastructure_pid, configuration)
        logger.info("stopped the task of flow run %s, which was cancelled before it started", run.id)
