"""When checkpoints are saved: by time, so that what an interruption costs does not depend on the size of a step."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from pathlib import Path

from crucible.errors import ConfigError

__all__ = ["CheckpointClock"]


class CheckpointClock:
    """Decides when a checkpoint is due.

    The interval is, in this order: what the agent writes into CRUCIBLE_CONTROL_FILE, CRUCIBLE_CHECKPOINT_SECONDS, the
    config, else Young's sqrt(2 C M) for the measured pause C and an assumed M = 2 hours between interruptions, at most
    five minutes and never so short that saves queue up.
    """

    _MTBF_SECONDS = 2 * 3600.0
    _LONGEST_SECONDS = 300.0
    _FIRST_SECONDS = 15.0  # until a save has been measured

    def __init__(self, configured: float | None, environment: Mapping[str, str] = os.environ) -> None:
        self._fixed = configured
        wanted = environment.get("CRUCIBLE_CHECKPOINT_SECONDS")
        if wanted:
            try:
                self._fixed = float(wanted)
            except ValueError:
                raise ConfigError(f"CRUCIBLE_CHECKPOINT_SECONDS = {wanted!r} is not a number of seconds") from None
        control = environment.get("CRUCIBLE_CONTROL_FILE")
        self._control = Path(control) if control else None
        self._control_changed = 0
        self._adapted = self._FIRST_SECONDS
        self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """The interval wanted now."""
        return self._adapted if self._fixed is None else self._fixed

    def due(self) -> bool:
        """Whether the interval has passed since the last save began."""
        self._read_control()
        return time.monotonic() - self._last >= self.seconds

    def saved(self) -> None:
        """A save has just begun."""
        self._last = time.monotonic()

    def measured(self, stall_seconds: float, write_seconds: float) -> None:
        """Adapt to what a save has cost."""
        young = (2 * stall_seconds * self._MTBF_SECONDS) ** 0.5
        self._adapted = max(3 * write_seconds, min(young, self._LONGEST_SECONDS), 1.0)

    def _read_control(self) -> None:
        if self._control is None:
            return
        try:
            changed = self._control.stat().st_mtime_ns
            if changed != self._control_changed:
                self._fixed = float(json.loads(self._control.read_text(encoding="utf-8"))["checkpoint_seconds"])
                self._control_changed = changed
        except (OSError, ValueError, KeyError, TypeError):
            return  # not there yet, or half written: the next step looks again
