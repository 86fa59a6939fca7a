"""The worker of the `local` pool: `python -m crucible.local.worker` is `prefect` with a process worker that suits it.

It is woken by events (`crucible.workers.waking`), and starts Prefect's engine directly: a deployment here needs no
workspace of its own, whose preparation would load all of Prefect once more in every flow run. The engine it starts has
been loaded ahead (`crucible.local.ahead`).
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from prefect.utilities.processutils import command_to_string
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from crucible.local.ahead import ENGINE, EngineAhead
from crucible.workers.waking import Waking


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
