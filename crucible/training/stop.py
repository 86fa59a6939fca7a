"""A request to stop is only a flag: the trainer saves at the next step boundary and exits with 75, at once."""

from __future__ import annotations

import json
import os
import signal
import sys
from pathlib import Path
from types import FrameType
from typing import NoReturn

__all__ = ["EXIT_SAVED", "StopRequest", "leave"]

EXIT_SAVED = 75
"""Stopped and saved, start me again (EX_TEMPFAIL of sysexits.h)."""


class StopRequest:
    """Listens for SIGTERM and SIGINT from the moment it is made; make it in the main thread, before slow imports."""

    def __init__(self) -> None:
        self._signal: int | None = None
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._heed)

    def __bool__(self) -> bool:
        return self._signal is not None

    def reason(self) -> str:
        """Why we are asked to stop: the agent's words if it left any, else the signal's name."""
        path = os.environ.get("CRUCIBLE_STOP_REASON_FILE")
        if path:
            try:
                return str(json.loads(Path(path).read_text(encoding="utf-8"))["reason"])
            except (OSError, ValueError, KeyError, TypeError):
                pass
        return signal.Signals(self._signal).name if self._signal is not None else "asked to stop"

    def _heed(self, number: int, _frame: FrameType | None) -> None:
        self._signal = number


def leave(code: int) -> NoReturn:
    """End this process, whose work is done, at once.

    Python would first take torch apart, for the better part of a second that a machine about to vanish may not have.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
