"""A request to stop: the trainer saves at the next step boundary and exits with 75.

Before the first new step there is nothing to save, and preparing (tokenizing, waiting for a lock, verifying a
checkpoint, importing torch, compiling) can take minutes: a process on its own then exits at once.
"""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import NoReturn

from crucible.contract import EXIT_SAVED, StopReason, Variable

__all__ = ["StopRequest", "leave"]


class StopRequest:
    """Listens for SIGTERM and SIGINT from the moment it is made; make it in the main thread, before slow imports."""

    def __init__(self) -> None:
        self._signal: int | None = None
        self.anything_to_save: Callable[[], bool] = lambda: False
        """Whether a step was made that is lost if the process exits now; called in the signal handler."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def __bool__(self) -> bool:
        return self._signal is not None

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
            os.write(2, f"stopped before the first step ({self.reason()}); nothing to save\n".encode())
            os._exit(EXIT_SAVED)


def leave(code: int) -> NoReturn:
    """End this process, whose work is done, at once.

    Python would first take torch apart, for the better part of a second that a machine about to vanish may not have.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
