"""Reports ECS tasks that stopped to their flow runs, for the worker type `crucible-ecs`.

It reads the same queue of events as prefect-aws's observer and keeps its handlers, except the one that crashes flow
runs. That one (prefect-aws 0.7.12) crashes a flow run for any stopped task that carries its id, also for a task that
the run has left behind: a late event, or a second submission by a restarted worker. Its message says only that a
container "stopped with a non-zero exit code", also where there was none. Here only the task that the run runs in now
(its `infrastructure_pid`) can crash it, and the state says why, as `crucible.pools.aws.diagnosis` puts it.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from typing import Any

from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelled, Crashed
from prefect_aws.observers import ecs

from crucible.pools.aws.diagnosis import of_task

REPLACED = "mark_runs_as_crashed"
"""The handler of prefect-aws that `report_stopped_task` replaces."""
RUN_ID_TAG = "prefect.io/flow-run-id"
RESTART_SECONDS = 30.0

logger = logging.getLogger("prefect.workers.ecs.observer")


def make_observer() -> ecs.EcsObserver:
    """An observer with prefect-aws's handlers and `report_stopped_task`; prefect-aws's own is not touched."""
    observer = ecs.EcsObserver()
    for kind, entries in ecs.ecs_observer.event_handlers.items():
        observer.event_handlers[kind] = [entry for entry in entries if entry.handler.__name__ != REPLACED]
    stopped = observer.on_event("task", tags={RUN_ID_TAG: ecs.FilterCase.PRESENT}, statuses=["STOPPED"])
    stopped(report_stopped_task)
    return observer


@asynccontextmanager
async def observing() -> AsyncIterator[None]:
    """Observe in the background; a failure is logged, and the observer starts again half a minute later."""
    task = asyncio.create_task(_observe())
    try:
        yield
    finally:
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task


async def _observe() -> None:
    while True:
        try:
            await make_observer().run()  # type: ignore[no-untyped-call]
            return  # without a queue there is nothing to observe; prefect-aws has logged it
        except Exception as error:  # noqa: BLE001 - AWS or the server is away: as long as it takes
            logger.warning("The observer of ECS tasks starts again in %.0f s: %r", RESTART_SECONDS, error)
        await asyncio.sleep(RESTART_SECONDS)


async def report_stopped_task(event: dict[str, Any], tags: dict[str, str]) -> None:
    """Give the flow run of a stopped task its final state, unless it has one or runs elsewhere by now."""
    detail = event.get("detail", {})
    task, flow_run_id = detail.get("taskArn"), uuid.UUID(tags[RUN_ID_TAG])
    async with get_client() as client:
        try:
            run = await client.read_flow_run(flow_run_id)
        except ObjectNotFound:
            return
        current = run.infrastructure_pid.split("::", 1)[-1] if run.infrastructure_pid else None
        if current is not None and current != task:
            logger.info("task %s has stopped, but its flow run runs in %s: not crashed", task, current)
            return
        reason = of_task(detail)
        if reason is None or not _goes_on(run):
            return
        flow_run_logger(flow_run_id=flow_run_id).getChild("observer").error("%s", reason)
        assert run.state is not None
        never_ran = run.state.is_pending()
        state = Cancelled if run.state.is_cancelling() else Crashed
        await client.set_flow_run_state(flow_run_id, state(message=f"{reason} - {_exits(detail)}"))
    if never_ran and task is not None:
        await _forward_logs(detail, task, flow_run_id)


def _goes_on(run: FlowRun) -> bool:
    """Whether the run believes that its task is alive."""
    state = run.state
    return state is not None and not (state.is_final() or state.is_scheduled() or state.is_paused())


def _exits(detail: dict[str, Any]) -> str:
    """How the task stopped, in ECS's own terms."""
    codes = ", ".join(f"{c.get('name')}: {c.get('exitCode', 'none')}" for c in detail.get("containers") or [])
    return f"ECS stop code {detail.get('stopCode', 'unknown')}, exit codes {codes or 'none'}"


async def _forward_logs(detail: dict[str, Any], task: str, flow_run_id: uuid.UUID) -> None:
    """Copy the container's last log lines to a flow run that never reached the server itself."""
    from aiobotocore.session import get_session

    settings = ecs.ecs_observer.settings
    definition = detail.get("taskDefinitionArn")
    if not settings.forward_crashed_run_logs or not definition:
        return
    session, region = get_session(), task.split(":")[3]
    log = flow_run_logger(flow_run_id=flow_run_id).getChild("observer")
    try:
        async with session.create_client("ecs", region_name=region) as client:
            described = await client.describe_task_definition(taskDefinition=definition)
        container = described["taskDefinition"]["containerDefinitions"][0]
        options = container["logConfiguration"]["options"]
        stream = f"{options['awslogs-stream-prefix']}/{container['name']}/{task.rsplit('/', 1)[-1]}"
        async with session.create_client("logs", region_name=options.get("awslogs-region", region)) as client:
            lines = await ecs.fetch_cloudwatch_logs(
                logs_client=client,
                log_group=options["awslogs-group"],
                log_stream=stream,
                max_events=settings.forward_crashed_run_logs_max_events,
            )
    except Exception as error:  # noqa: BLE001 - logs that cannot be read decide nothing
        logger.debug("the log of task %s could not be read: %r", task, error)
        return
    for line in lines:
        log.info("%s", line)
