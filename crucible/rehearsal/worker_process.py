"""A pool's real worker as a process of its own, to be killed and started again."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

_TIMEOUT_SECONDS = 30.0


class WorkerProcess:
    """`prefect worker start`, always under the same name, so that a new one knows what the one before has started."""

    def __init__(self, pool: str, kind: str, environment: Mapping[str, str], log: Path) -> None:
        """`kind`: the worker's type."""
        self._pool, self._kind, self._environment, self._log = pool, kind, dict(environment), log
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start the worker unless it runs."""
        if self._process is not None and self._process.poll() is None:
            return
        command = [sys.executable, "-m", "prefect", "worker", "start", "--type", self._kind, "--pool", self._pool]
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                [*command, "--name", f"{self._pool}-1"], env=self._environment, stdout=log, stderr=subprocess.STDOUT
            )

    def stop(self) -> None:
        """Ask the worker to stop, as Ctrl-C does, and wait for its end."""
        if self._process is None:
            return
        self._process.terminate()
        try:
            self._process.wait(_TIMEOUT_SECONDS)
        except subprocess.TimeoutExpired:
            self.kill()

    def kill(self) -> None:
        """End the worker between two instructions."""
        if self._process is not None:
            self._process.kill()
            self._process.wait(_TIMEOUT_SECONDS)
