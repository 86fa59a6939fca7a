"""Cancelling a run that waits for a machine: its ECS task must stop, or it brings up a machine for nothing.

Prefect's worker watches a run for cancellation only while it submits it. The ECS worker has submitted a run as soon as
RunTask has answered, so a run that is cancelled while its task is PROVISIONING stays Cancelling for ever (prefect 3.8,
prefect-aws 0.7.12; https://github.com/PrefectHQ/prefect/issues/18585). Once a run has started, its own process handles
the cancellation.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterEndTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.exceptions import InfrastructureNotFound
from prefect.states import Cancelled
from prefect.workers.base import BaseWorker

from crucible.pools.aws.nodes import stop_further_tasks

POLL_SECONDS = 3.0
LOOK_BACK = timedelta(hours=1)
"""From a run's end. ECS gives up on a task after half an hour by itself."""
_PAGE = 200
LEAVE_SECONDS = 60.0
"""How long the nodes of a run that is over have to leave by themselves."""
logger = logging.getLogger("prefect.workers.ecs.cancellation")

Worker = BaseWorker[Any, Any, Any]


@contextlib.asynccontextmanager
async def stopping_waiting_tasks(worker: Worker) -> AsyncIterator[None]:
    """Stop the tasks of cancelled runs that never started, in the background."""
    task = asyncio.create_task(_watch(worker))
    try:
        yield
    finally:
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _watch(worker: Worker) -> None:
    stopped: set[UUID] = set()
    nodes_stopped: set[UUID] = set()
    while True:
        try:
            await stop_waiting_tasks(worker, stopped, nodes_stopped)
        except Exception as error:  # noqa: BLE001 - the server or AWS is away: tried again in the next round
            logger.warning("could not look for cancelled runs: %s", error)
        await asyncio.sleep(POLL_SECONDS)


async def stop_waiting_tasks(worker: Worker, stopped: set[UUID], nodes_stopped: set[UUID] | None = None) -> None:
    """One round: stop the task of every cancelled run of the worker's pool that never started, and the tasks of further
    nodes of every one that is over.

    `stopped` and `nodes_stopped` remember the runs that need no further look.
    """
    for run in await _read_cancelled(worker):
        if nodes_stopped is not None and run.id not in nodes_stopped:
            await _stop_further_nodes(worker, run, nodes_stopped)
        # Of a run that goes straight from Pending to Cancelled, Prefect says that it started at that moment.
        started = run.start_time is not None and run.start_time != run.end_time
        if run.id in stopped or started:
            continue
        try:
            await _stop_task(worker, run)
        except Exception as error:  # noqa: BLE001 - the other runs' tasks cost money too
            logger.warning("the task of cancelled flow run %s is not stopped yet: %s", run.id, error)
            continue
        if run.state_type == StateType.CANCELLED and run.infrastructure_pid:
            stopped.add(run.id)


async def _read_cancelled(worker: Worker) -> list[FlowRun]:
    """The pool's runs that are being cancelled, however long they had waited, and those that were a short while ago."""
    pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[worker.work_pool.name]))
    lately = FlowRunFilterEndTime(after_=datetime.now(UTC) - LOOK_BACK)
    runs: list[FlowRun] = []
    for kind, ended in ((StateType.CANCELLING, None), (StateType.CANCELLED, lately)):
        wanted = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[kind])), end_time=ended)
        offset = 0
        while page := await worker.client.read_flow_runs(
            work_pool_filter=pool, flow_run_filter=wanted, limit=_PAGE, offset=offset
        ):
            runs += page
            offset += len(page)
    return runs


async def _stop_further_nodes(worker: Worker, run: FlowRun, stopped: set[UUID]) -> None:
    """Stop what is left of the nodes of a run that is over: each that still waits would bring up a machine."""
    if run.state_type != StateType.CANCELLED or (run.job_variables or {}).get("nodes") in (None, "", "1"):
        return
    age = (datetime.now(UTC) - run.end_time).total_seconds() if run.end_time else LEAVE_SECONDS
    if age < LEAVE_SECONDS:
        return
    try:
        configuration = await _configuration(worker, run)
        client = await asyncio.to_thread(configuration.aws_credentials.get_client, "ecs")
        await asyncio.to_thread(stop_further_tasks, client, configuration.cluster, run)
    except Exception as error:  # noqa: BLE001 - tried again in the next round
        logger.warning("the nodes of flow run %s are not stopped yet: %s", run.id, error)
    else:
        stopped.add(run.id)


async def _stop_task(worker: Worker, run: FlowRun) -> None:
    if run.infrastructure_pid:
        configuration = await _configuration(worker, run)
        with contextlib.suppress(InfrastructureNotFound):  # ECS forgets a task an hour after its end
            await worker.kill_infrastructure(run.infrastructure_pid, configuration)
        logger.info("stopped the task of flow run %s, which was cancelled before it started", run.id)
    if run.state_type == StateType.CANCELLING:
        state: State[Any] = Cancelled(message="Cancelled before it had a machine")
        await worker.client.set_flow_run_state(run.id, state, force=True)


async def _configuration(worker: Worker, run: FlowRun) -> Any:
    return await worker.job_configuration.resolve_for_flow_run(
        run,
        client=worker.client,
        work_pool=worker.work_pool.model_copy(deep=True),
        worker_name=worker.name,
        worker_id=worker.backend_id,
    )
