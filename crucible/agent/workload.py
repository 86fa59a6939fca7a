"""The workload: any command, run as a child process in a process group of its own."""

from __future__ import annotations

import contextvars
import logging
import os
import signal
import subprocess
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO

from crucible.agent.last_lines import LastLines
from crucible.contract import ADAPTER_LINE, EXIT_DONE, EXIT_SAVED, EXIT_UNFIT
from crucible.jobs.records import EndReason
from crucible.parent_death_guard import guarded

logger = logging.getLogger(__name__)

_KILLED_FROM_OUTSIDE = {signal.SIGKILL, signal.SIGTERM, signal.SIGINT, signal.SIGHUP}


@dataclass(frozen=True)
class WorkloadEnd:
    """How the process ended by itself, before anything the agent knows of notices is taken into account."""

    end_reason: EndReason
    message: str
    exit_code: int
    last_lines: tuple[str, ...] = ()
    """What a person has to see of one that failed: its last lines, a traceback whole."""


class Workload:
    """A running command, with all that it starts, which goes when this process goes (see `parent_death_guard.py`)."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], cwd: Path, on_line: Callable[[str], None]
    ) -> None:
        self._last_lines = LastLines()
        self._on_line = on_line
        self._process = subprocess.Popen(
            guarded(list(command)),
            env={**environment, "PYTHONUNBUFFERED": "1"},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(
            target=contextvars.copy_context().run,
            args=(self._read, self._process.stdout),
            name="workload-output",
            daemon=True,
        )
        self._reader.start()

    @property
    def pid(self) -> int:
        return self._process.pid

    def running(self) -> bool:
        return self._process.poll() is None

    def ask_to_stop(self) -> None:
        """SIGTERM to the workload itself; what it does with its own children is its business."""
        if self.running():
            self._process.terminate()

    def kill(self) -> None:
        """SIGKILL to everything the workload started."""
        try:
            os.killpg(self._process.pid, signal.SIGKILL)
        except ProcessLookupError:
            return

    def end(self) -> WorkloadEnd:
        """Wait for the process and its output; returns how it ended."""
        code = self._process.wait()
        self.kill()  # what it left running would hold its output open, and the machine's memory
        self._reader.join(timeout=5)  # a grandchild in a group of its own may still hold it
        if code > 128 and code - 128 in set(signal.Signals):
            code = 128 - code  # a shell's way to report a signal
        if code == EXIT_DONE:
            return WorkloadEnd(EndReason.COMPLETED, "the workload is done", code)
        if code == EXIT_SAVED:
            return WorkloadEnd(EndReason.INTERRUPTED, "the workload stopped and saved", code)
        if code == EXIT_UNFIT:
            cause = self._last_lines.cause().removeprefix("error: ")
            return WorkloadEnd(EndReason.UNFIT, cause, code, tuple(self._last_lines.tail()))
        if code < 0 and -code in _KILLED_FROM_OUTSIDE:
            hint = "; perhaps the machine ran out of memory" if -code == signal.SIGKILL else ""
            message = f"the workload was killed by {signal.Signals(-code).name}{hint}"
            return WorkloadEnd(EndReason.KILLED, message, code, tuple(self._last_lines.tail()))
        how = f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"
        cause = self._last_lines.cause()
        finished = cause.startswith(f"{ADAPTER_LINE}finished")  # the script did not fail, but nothing of it is left
        message = cause.removeprefix(ADAPTER_LINE) if finished else f"the workload failed with {how}: {cause}"
        return WorkloadEnd(EndReason.FAILED, message, code, tuple(self._last_lines.tail()))

    def _read(self, pipe: IO[bytes]) -> None:
        for raw in pipe:
            line = raw.decode(errors="replace").rstrip()
            self._last_lines.add(line)
            try:
                self._on_line(line)
            except Exception:  # reading goes on: a full pipe would stop the workload in its next print
                logger.exception("the workload's lines cannot be passed on any more")
                self._on_line = _forget


def _forget(_line: str) -> None:
    """Drop it."""
