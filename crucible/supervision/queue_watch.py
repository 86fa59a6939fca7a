"""Long queues: notices that flow runs wait for a slot or a worker, and sends the event `crucible.queue`."""

from __future__ import annotations

import time
from collections import defaultdict
from datetime import UTC, datetime, timedelta

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterNextScheduledStartTime,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.events import emit_event

from crucible.formatting import counted

WAITING_MINUTES = 15
LOOK_SECONDS = 60.0


class QueueWatch:
    """Sends one event for each queue that becomes long, and another only after it was short in between."""

    def __init__(self) -> None:
        self._look_at = 0.0
        self._long: set[str] = set()

    def look(self) -> list[str]:
        """At most once a minute; returns the messages of the events that were sent."""
        if time.monotonic() < self._look_at:
            return []
        self._look_at = time.monotonic() + LOOK_SECONDS
        now = datetime.now(UTC)
        with get_client(sync_client=True) as client:
            waiting = _waiting(client, now - timedelta(minutes=WAITING_MINUTES))
        messages = []
        for queue in sorted(waiting.keys() - self._long):
            first = min(run.next_scheduled_start_time for run in waiting[queue] if run.next_scheduled_start_time)
            minutes = (now - first).total_seconds() / 60
            message = (
                f"{counted(len(waiting[queue]), 'run')} in {queue} for more than {WAITING_MINUTES} minutes, the first "
                f"for {minutes:.0f}: are its workers there, and has it enough slots?"
            )
            emit_event(
                "crucible.queue",
                resource={"prefect.resource.id": f"crucible.queue.{queue}", "prefect.resource.name": queue},
                payload={"message": message, "runs": len(waiting[queue]), "minutes": round(minutes)},
            )
            messages.append(message)
        self._long = set(waiting)
        return messages


def _waiting(client: SyncPrefectClient, since: datetime) -> dict[str, list[FlowRun]]:
    """The runs that should have begun by then and have not, by `pool/queue`."""
    found = client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=[StateType.SCHEDULED])),
            next_scheduled_start_time=FlowRunFilterNextScheduledStartTime(before_=since),
        ),
        sort=FlowRunSort.NEXT_SCHEDULED_START_TIME_ASC,
        limit=200,
    )
    queues: dict[str, list[FlowRun]] = defaultdict(list)
    for run in found:
        if run.work_pool_name is not None:
            queues[f"{run.work_pool_name}/{run.work_queue_name}"].append(run)
    return queues
