"""A fence around prefect-aws's observer of ECS tasks, and words for what it reports.

prefect-aws (0.7.12) marks a flow run Crashed for any stopped task that carries its id, also for one that it has left
behind: an event that arrives late, a second submission by a restarted worker. With the fence, only the task that the
flow run runs in now (its `infrastructure_pid`) can crash it; others are logged and let go.

Its message says that a container "stopped with a non-zero exit code" even when there never was one, because the image
is missing or the machine was taken; here the Crashed state also says why, in the words of
`crucible.pools.aws.diagnosis`.

If prefect-aws no longer has what is changed, installing says so loudly instead of leaving the fence silently open.
"""

from __future__ import annotations

import logging
import uuid
from contextvars import ContextVar
from typing import Any

from crucible.pools.aws.diagnosis import of_task

HANDLER = "mark_runs_as_crashed"
logger = logging.getLogger("prefect.workers.ecs.fence")
_why: ContextVar[str] = ContextVar("why", default="")


def install() -> None:
    """Put the fence around the observer of this process; again does nothing. Raises RuntimeError if it cannot."""
    from prefect_aws.observers import ecs

    handlers = ecs.ecs_observer.event_handlers["task"]
    if any(getattr(entry.handler, "fenced", False) for entry in handlers):
        return
    for index, entry in enumerate(handlers):
        if entry.handler.__name__ == HANDLER and hasattr(ecs, "Crashed"):
            handlers[index] = entry._replace(handler=_fenced(entry.handler))
            ecs.Crashed = _explained(ecs.Crashed)
            return
    raise RuntimeError(
        f"prefect-aws has no observer handler {HANDLER} any more: check crucible/prefect_compat/ecs_observer.py"
    )


def _fenced(handler: Any) -> Any:
    async def mark_current_task_as_crashed(event: dict[str, Any], tags: dict[str, str]) -> None:
        detail = event.get("detail", {})
        current = await _current_task(tags["prefect.io/flow-run-id"])
        if current is not None and current != detail.get("taskArn"):
            logger.info("task %s has stopped, but its flow run runs in %s: not crashed", detail.get("taskArn"), current)
            return
        token = _why.set(str(of_task(detail) or ""))
        try:
            await handler(event, tags)
        finally:
            _why.reset(token)

    mark_current_task_as_crashed.fenced = True  # type: ignore[attr-defined]
    return mark_current_task_as_crashed


def _explained(crashed: Any) -> Any:
    def crashed_because(*, message: str = "", **fields: Any) -> Any:
        return crashed(message=" - ".join(filter(None, (_why.get(), message))), **fields)

    return crashed_because


async def _current_task(flow_run_id: str) -> str | None:
    """ARN of the task that the flow run was last submitted as; None if it is not known or the run is gone."""
    from prefect.client.orchestration import get_client
    from prefect.exceptions import ObjectNotFound

    async with get_client() as client:
        try:
            run = await client.read_flow_run(uuid.UUID(flow_run_id))
        except ObjectNotFound:
            return None
    return run.infrastructure_pid.split("::", 1)[-1] if run.infrastructure_pid else None
