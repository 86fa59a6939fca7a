"""Scheduled runs that were missed while this machine was off: of each schedule only the newest one starts.

After a night with the laptop closed, Prefect would start every run that was due meanwhile, all at once. Only runs that
a schedule made and that nobody has begun are concerned: a run that waits for a concurrency slot, that is retried or
that a person started is never skipped. The tag `missed:all` on a deployment keeps Prefect's own behaviour.
"""

from __future__ import annotations

from collections import defaultdict
from uuid import UUID

from prefect.client.orchestration import PrefectClient
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterExpectedStartTime,
    FlowRunFilterState,
    FlowRunFilterStateName,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun
from prefect.client.schemas.sorting import FlowRunSort
from prefect.states import Cancelled
from prefect.types._datetime import now

KEEP_ALL = "missed:all"
"""Tag of a deployment whose missed runs all start."""
SKIPPED = "Skipped"
_NOT_BEGUN = ["Scheduled", "Late"]
_PAGE = 200


async def skip_missed_runs(client: PrefectClient, pool: str) -> list[str]:
    """End every missed run of the pool for which a newer one of its schedule is due; returns a message for each."""
    messages = []
    for runs in (await _due(client, pool)).values():
        newest, *older = sorted(runs, key=_due_at, reverse=True)
        for run in older:
            message = (
                f"Missed at {_due_at(run)}; {newest.name}, due at {_due_at(newest)}, runs instead. "
                f"To start every missed run, give the deployment the tag {KEEP_ALL}."
            )
            await client.set_flow_run_state(run.id, Cancelled(name=SKIPPED, message=message), force=True)
            messages.append(f"{run.name}: {message}")
    return messages


async def _due(client: PrefectClient, pool: str) -> dict[UUID, list[FlowRun]]:
    """The runs that should have begun by now, by the schedule that made them."""
    wanted = FlowRunFilter(
        state=FlowRunFilterState(name=FlowRunFilterStateName(any_=_NOT_BEGUN)),
        expected_start_time=FlowRunFilterExpectedStartTime(before_=now("UTC")),
    )
    found: dict[UUID, list[FlowRun]] = defaultdict(list)
    for offset in range(0, 1_000_000, _PAGE):
        page = await client.read_flow_runs(
            flow_run_filter=wanted,
            work_pool_filter=WorkPoolFilter(name=WorkPoolFilterName(any_=[pool])),
            sort=FlowRunSort.EXPECTED_START_TIME_ASC,
            limit=_PAGE,
            offset=offset,
        )
        for run in page:
            if run.auto_scheduled and run.created_by and run.created_by.id and KEEP_ALL not in run.tags:
                found[run.created_by.id].append(run)
        if len(page) < _PAGE:
            break
    return found


def _due_at(run: FlowRun) -> str:
    """When it should have begun; as text it also sorts by time."""
    return f"{run.expected_start_time:%Y-%m-%d %H:%M:%S} UTC"
