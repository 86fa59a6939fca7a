"""A request to stop is only a flag: the trainer saves at the next step boundary and exits with 75, at once."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

from crucible.contract import StopReason, Variable

__all__ = ["StopRequest", "leave"]


class StopRequest:
    """Listens for SIGTERM and SIGINT from the moment it is made; make it in the main thread, before slow imports."""

    def __init__(self) -> None:
        self._signal: int | None = None
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


def leave(code: int) -> NoReturn:
    """End this process, whose work is done, at once.

    Python would first take torch apart, for the better part of a second that a machine about to vanish may not have.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
