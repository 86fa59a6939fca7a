"""Workers that react to the server's events, so that they need not poll every second.

On an idle machine a poll costs the Prefect server as much as everything else it does, and takes that time from a
training beside it. The server's event stream reports at once that a run has been scheduled for the pool. Polling goes
on, at Prefect's leisure, for what the stream may have missed.
"""

from __future__ import annotations

import abc
import asyncio
import logging
from contextlib import suppress
from typing import Any
from uuid import UUID

from prefect.events import get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter
from prefect.types._datetime import now
from prefect.workers.base import BaseWorker

SCHEDULED = ["prefect.flow-run.Scheduled", "prefect.flow-run.AwaitingRetry"]
POLL_PAUSES_SECONDS = (0.0, 0.2, 1.0)
"""Pauses before each poll for the run of an event: the event may arrive before the server's own transaction ends."""
STALE_SECONDS = 10.0
"""A new connection repeats old events. The run of an event this old has been found by a poll."""
RECONNECT_SECONDS = 5.0

logger = logging.getLogger("prefect.workers.event_driven")


class EventDrivenWorker(BaseWorker[Any, Any, Any], abc.ABC):
    """A worker that polls as soon as a run is scheduled. Name it before the worker class that it extends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._run_scheduled = asyncio.Event()
        self._event_tasks: list[asyncio.Task[None]] = []

    @property
    def pool_id(self) -> UUID | None:
        """The id of the worker's pool; None until the worker has reached the server."""
        try:
            return self.work_pool.id
        except RuntimeError:
            return None

    async def sync_with_backend(self) -> None:
        """As in every worker. The first time, also subscribe to events, and poll at once for what is waiting."""
        await super().sync_with_backend()
        if not self._event_tasks and (pool := self.pool_id) is not None:
            self._event_tasks = [
                asyncio.create_task(self._listen(f"prefect.work-pool.{pool}")),
                asyncio.create_task(self._poll_when_scheduled()),
            ]
            self._run_scheduled.set()

    async def __aexit__(self, *exc_info: Any) -> None:
        for task in self._event_tasks:
            task.cancel()
        await super().__aexit__(*exc_info)

    async def _listen(self, pool: str) -> None:
        wanted = EventFilter(event=EventNameFilter(name=SCHEDULED), any_resource=EventAnyResourceFilter(id=[pool]))
        while True:
            try:
                async with get_events_subscriber(filter=wanted) as events:
                    async for event in events:
                        if (now("UTC") - event.occurred).total_seconds() < STALE_SECONDS:
                            self._run_scheduled.set()
            except Exception as error:  # noqa: BLE001 - whatever it is, polling goes on
                logger.debug("No events of scheduled flow runs for a while: %r", error)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _poll_when_scheduled(self) -> None:
        while True:
            await self._run_scheduled.wait()
            self._run_scheduled.clear()
            for pause in POLL_PAUSES_SECONDS:
                await asyncio.sleep(pause)
                with suppress(Exception):  # the worker's own poll meets the same error and logs it
                    if await self.get_and_submit_flow_runs():
                        break
