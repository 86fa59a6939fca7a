"""The worker of the `local` pool, of the type `crucible-local`.

It reacts to events (`crucible.pools.common.event_driven`) and starts Prefect's engine directly: a deployment here needs
no workspace of its own, whose preparation would load all of Prefect once more in every flow run. The engine it starts
is prewarmed (`crucible.pools.local.prewarmed`). Of scheduled runs that were missed, the newest one starts
(`crucible.pools.local.missed`).
"""

from __future__ import annotations

import time
from typing import Any

from prefect.client.schemas.objects import FlowRun
from prefect.utilities.processutils import command_to_string
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from crucible.pools.common.event_driven import EventDrivenWorker
from crucible.pools.local.missed import skip_missed_runs
from crucible.pools.local.prewarmed import ENGINE, PrewarmedEngine

TYPE = "crucible-local"
AWAY_SECONDS = 60.0
"""Without a poll for so long, the worker, the server or the whole machine was off, and runs may have been missed."""


class LocalJobConfiguration(ProcessJobConfiguration):
    """A process worker's configuration, with the command that Prefect uses where nothing has to be prepared."""

    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:
        """Fill in what the flow run decides. A command that the deployment sets stays."""
        self.command = self.command or command_to_string(ENGINE)
        super().prepare_for_flow_run(*args, **kwargs)


class LocalWorker(EventDrivenWorker, ProcessWorker):
    """Runs flow runs as processes on this machine."""

    type = TYPE
    job_configuration = LocalJobConfiguration
    _description = "Run flow runs as processes on this machine, in an engine that is loaded in advance."
    _display_name = "Crucible local"
    _documentation_url = ""
    _polled_at = 0.0
    """By the wall clock, which goes on while a machine sleeps."""

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """Poll and start what is due; after an absence, of missed scheduled runs only the newest of each schedule."""
        if self.pool_id is None:  # the server has not answered yet
            return await super().get_and_submit_flow_runs()
        if time.time() - self._polled_at >= AWAY_SECONDS:
            for message in await skip_missed_runs(self.client, self.work_pool.name):
                self._logger.warning("skipped %s", message)
        found = await super().get_and_submit_flow_runs()
        self._polled_at = time.time()
        return found

    async def __aenter__(self) -> LocalWorker:
        await super().__aenter__()
        self._engine = await PrewarmedEngine().__aenter__()
        return self

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._engine.__aexit__(*exc_info)
        await super().__aexit__(*exc_info)
