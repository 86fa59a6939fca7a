"""The worker of the `local` pool: `python -m crucible.local.worker` is `prefect` with a process worker that suits it.

It is woken by events (`crucible.workers.waking`), and starts Prefect's engine directly: a deployment here needs no
workspace of its own, whose preparation would load all of Prefect once more in every flow run.
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

from prefect.utilities.processutils import command_to_string
from prefect.workers.process import ProcessJobConfiguration, ProcessWorker

from crucible.workers.waking import Waking


class LocalJobConfiguration(ProcessJobConfiguration):
    """A process worker's, with the command that Prefect uses where nothing has to be prepared."""

    def prepare_for_flow_run(self, *args: Any, **kwargs: Any) -> None:
        """Fill in what the flow run decides; a command of the deployment's own stays."""
        self.command = self.command or command_to_string([sys.executable, "-m", "prefect.engine"])
        super().prepare_for_flow_run(*args, **kwargs)


with warnings.catch_warnings():
    warnings.simplefilter("ignore")  # Prefect warns that the type is taken: here this class is to be the one

    class LocalWorker(Waking, ProcessWorker):
        """Runs flow runs as processes on this machine."""

        job_configuration = LocalJobConfiguration


def main() -> None:
    """`prefect`, whose process worker is this one."""
    from prefect.cli import app

    sys.argv[0] = "prefect"
    app()


if __name__ == "__main__":
    main()
