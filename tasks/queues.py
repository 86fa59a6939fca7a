"""Slots for attempts: a supervisor must not hold one that its own attempt needs.

On the `local` pool supervisors and attempts share a worker. Attempts have a queue of their own there, `attempts`, and
the number of attempts at a time is that queue's limit. A limit on the whole pool would count supervisors too: with
`prefect work-pool set-concurrency-limit local 1` the first supervisor would wait for ever for the slot that it holds.
So the supervisor that meets one makes it the limit of the queue, which is what it was meant to be.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun, WorkQueue, WorkQueueStatus
from prefect.exceptions import PrefectException
from prefect.logging import get_run_logger
from prefect.runtime import flow_run

LOOK_SECONDS = 30.0


class AttemptQueue:
    """What the queue of an attempt's pool says about its turn."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._look_at = clock, 0.0
        self._slots: int | None = None
        self._looks_without_worker = 0

    @property
    def unserved(self) -> bool:
        """Whether no worker polled the queue at the last two looks: one that is just starting gets the time to."""
        return self._looks_without_worker > 1

    def slots(self, run: FlowRun) -> int | None:
        """The slots that a waiting run waits for; None where the queue has no limit, or no worker serves it."""
        if self._clock() >= self._look_at and run.work_queue_id is not None:
            self._look_at = self._clock() + LOOK_SECONDS
            self.keep_supervisors_out(run)  # a limit may be set while it waits
            found = _read_queue(run.work_queue_id)
            served = found is None or found.status is not WorkQueueStatus.NOT_READY
            self._looks_without_worker = 0 if served else self._looks_without_worker + 1
            self._slots = found.concurrency_limit if found and found.status is WorkQueueStatus.READY else None
        return self._slots

    def keep_supervisors_out(self, run: FlowRun) -> None:
        """Make a limit of this supervisor's own pool one of the attempts' queue."""
        if not flow_run.id or run.work_queue_id is None or run.work_pool_name is None:
            return
        try:
            with get_client(sync_client=True) as client:
                limit = client.read_work_pool(run.work_pool_name).concurrency_limit
                own = client.read_flow_run(UUID(flow_run.id)) if limit else None
                if own is None or own.work_pool_name != run.work_pool_name or own.work_queue_id == run.work_queue_id:
                    return
                client.update_work_queue(run.work_queue_id, concurrency_limit=limit)
                client.update_work_pool(run.work_pool_name, WorkPoolUpdate(concurrency_limit=None))
        except (httpx.HTTPError, PrefectException):
            return
        get_run_logger().warning(
            f"the limit of {limit} that the pool {run.work_pool_name} had is now its queue {run.work_queue_name}'s: "
            f"it counts attempts, not the supervisors that wait for them"
        )


def _read_queue(queue: UUID) -> WorkQueue | None:
    try:
        with get_client(sync_client=True) as client:
            return client.read_work_queue(queue)
    except (httpx.HTTPError, PrefectException):
        return None
