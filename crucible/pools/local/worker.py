"""The worker of the `local` pool: `python -m crucible.pools.local.worker` is `prefect` with a worker of ours.

It is woken by events (`crucible.pools.common.event_driven`), and starts
Prefect's engine directly: a deployment here needs no
workspace of its own, whose preparation would load all of Prefect once more in every flow run. The engine it starts has
been loaded ahead (`crucible.pools.local.prewarmed`).
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from prefect.utilities.processutils import command_to_string
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from crucible.pools.common.event_driven import Waking
from crucible.pools.local.prewarmed import ENGINE, EngineAhead


class LocalJobConfiguration(ProcessJobConfiguration):
    """A process worker's, with the command that Prefect uses where nothing has to be prepared."""

    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:
        """Fill in what the flow run decides; a command of the deployment's own stays."""
        self.command = self.command or command_to_string(ENGINE)
        super().prepare_for_flow_run(*args, **kwargs)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Prefect warns that the type is taken: here this class is to be the one

    class LocalWorker(Waking, ProcessWorker):
        """Runs flow runs as processes on this machine."""

        job_configuration = LocalJobConfiguration

        async def __aenter__(self) -> LocalWorker:
            await super().__aenter__()
            self._ahead = await EngineAhead().__aenter__()
            return self

        async def __aexit__(self, *exc_info: Any) -> None:
            await self._ahead.__aexit__(*exc_info)
            await super().__aexit__(*exc_info)


def main() -> None:
    """`prefect`, whose process worker is this one."""
    from prefect.cli import app

    sys.argv[0] = "prefect"
    app()


if __name__ == "__main__":
    main()
