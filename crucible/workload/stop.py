"""A request to stop: the workload saves at the next step boundary and exits with 75.

Before the first new step there is nothing to save, and preparing (tokenizing, waiting for a lock, verifying a
checkpoint, importing torch, compiling) can take minutes: a process on its own then exits at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import NoReturn

from crucible.contract import EXIT_SAVED, StopReason, Variable
from crucible.errors import ConfigError

__all__ = ["StopRequest", "leave", "stop_at_step"]


class StopRequest:
    """Listens for `signals` from the moment it is made; make it in the main thread, before slow imports."""

    def __init__(
        self,
        signals: Sequence[signal.Signals] = (signal.SIGTERM, signal.SIGINT),
        anything_to_save: Callable[[], bool] = lambda: False,
    ) -> None:
        self._signal: int | None = None
        self.anything_to_save = anything_to_save
        """Whether a step was made that is lost if the process exits now; called in the signal handler."""
        self._before = {number: signal.signal(number, self._handle) for number in signals}

    def __bool__(self) -> bool:
        return self._signal is not None

    def close(self) -> None:
        """Leave the signals to whoever had them before."""
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def reason(self) -> str:
        """Why we are asked to stop: what the agent wrote, if it did, else the signal's name."""
        path = os.environ.get(Variable.STOP_REASON_FILE)
        if path:
            try:
                return StopReason.read(Path(path)).reason
            except (OSError, ValueError):
                pass
        return signal.Signals(self._signal).name if self._signal is not None else "asked to stop"

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        self._signal = number
        if not self.anything_to_save() and "RANK" not in os.environ:  # one of several must not leave the others alone
            with suppress(OSError):  # a full disk, or nobody who reads
                os.write(2, f"stopped before the first step ({self.reason()}); nothing to save\n".encode())
            os._exit(EXIT_SAVED)


def stop_at_step() -> int | None:
    """The step at which this run is asked to save and exit with 75, if any. Raises ConfigError."""
    wanted = os.environ.get(Variable.STOP_AT_STEP)
    if not wanted:
        return None
    if not wanted.isdigit() or int(wanted) < 1:
        raise ConfigError(f"{Variable.STOP_AT_STEP} = {wanted!r} must be a step, 1 or more")
    return int(wanted)


def leave(code: int) -> NoReturn:
    """End this process, whose work is done, at once.

    Python would first take torch apart, for the better part of a second that a machine about to vanish may not have.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
