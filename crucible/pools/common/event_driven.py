"""Workers that hear of a scheduled flow run, and so need not ask every second whether there is one.

A poll costs the Prefect server as much as all else it does on an idle machine, and takes that from a training beside
it. The server's event stream tells at once that a run has been scheduled for the pool; polling goes on, at Prefect's
leisure, for what the stream may have missed.
"""

from __future__ import annotations

import abc
import asyncio
from contextlib import suppress
from typing import Any

from prefect.events import get_events_subscriber
from prefect.events.filters import EventAnyResourceFilter, EventFilter, EventNameFilter
from prefect.types._datetime import now
from prefect.workers.base import BaseWorker

SCHEDULED = ["prefect.flow-run.Scheduled", "prefect.flow-run.AwaitingRetry"]
LOOKS_SECONDS = (0.0, 0.2, 1.0)
"""Pauses before each look for the run that was told of: it may be told before the server's own transaction ends."""
STALE_SECONDS = 10.0
"""An event as old as that, which a new connection brings again, is of a run that a poll has found."""
RECONNECT_SECONDS = 5.0


class Waking(BaseWorker[Any, Any, Any], abc.ABC):
    """A worker that looks for flow runs as soon as one is scheduled; to be named before the worker class it extends."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._scheduled = asyncio.Event()
        self._listening: list[asyncio.Task[None]] = []

    async def sync_with_backend(self) -> None:
        """As every worker's; the first time it also begins to listen, and looks at once for what is waiting."""
        await super().sync_with_backend()
        if not self._listening and self._work_pool is not None:
            pool = f"prefect.work-pool.{self._work_pool.id}"
            self._listening = [asyncio.create_task(self._listen(pool)), asyncio.create_task(self._look_when_told())]
            self._scheduled.set()

    async def __aexit__(self, *exc_info: Any) -> None:
        for task in self._listening:
            task.cancel()
        await super().__aexit__(*exc_info)

    async def _listen(self, pool: str) -> None:
        wanted = EventFilter(event=EventNameFilter(name=SCHEDULED), any_resource=EventAnyResourceFilter(id=[pool]))
        while True:
            try:
                async with get_events_subscriber(filter=wanted) as events:
                    async for event in events:
                        if (now("UTC") - event.occurred).total_seconds() < STALE_SECONDS:
                            self._scheduled.set()
            except Exception as error:  # noqa: BLE001 - whatever it is, polling goes on
                self._logger.debug("Not told of scheduled flow runs for a while: %r", error)
            await asyncio.sleep(RECONNECT_SECONDS)

    async def _look_when_told(self) -> None:
        while True:
            await self._scheduled.wait()
            self._scheduled.clear()
            for pause in LOOKS_SECONDS:
                await asyncio.sleep(pause)
                with suppress(Exception):  # the poll meets the same error and tells it
                    if await self.get_and_submit_flow_runs():
                        break
