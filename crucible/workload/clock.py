"""When checkpoints are saved: by time, so that what an interruption costs does not depend on the size of a step."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path

from crucible.contract import Control, Variable
from crucible.intervals import IntervalPolicy, SaveCosts

__all__ = ["CheckpointClock"]


class CheckpointClock:
    """Decides when a checkpoint is due.

    The interval is the one that the agent publishes in its control file; without an agent `configured`, the config's
    `checkpoint_interval_seconds`; without that what `crucible.intervals` makes of the measured costs. `log` receives
    one line when the control file is damaged: the interval then stays as it is.
    """

    def __init__(
        self,
        configured: float | None,
        log: Callable[[str], None] = lambda line: None,
        environment: Mapping[str, str] = os.environ,
    ) -> None:
        self._configured, self._log = configured, log
        self._policy, self._costs = IntervalPolicy(), SaveCosts()
        self._adapted = self._policy.first_seconds
        self._published: float | None = None
        control = environment.get(Variable.CONTROL_FILE)
        self._control = Path(control) if control else None
        self._control_changed = 0
        self._last = time.monotonic()

    @property
    def seconds(self) -> float:
        """The interval in force, in seconds."""
        fixed = self._configured if self._published is None else self._published
        return self._adapted if fixed is None else fixed

    def due(self) -> bool:
        """Whether the interval has passed since the last save began."""
        self._read_control()
        return self.elapsed_seconds >= self.seconds

    @property
    def elapsed_seconds(self) -> float:
        """Seconds since the last save began, or since the start."""
        return time.monotonic() - self._last

    def saved(self) -> None:
        """A save has just begun."""
        self._last = time.monotonic()

    def measured(self, stall_seconds: float, write_seconds: float) -> None:
        """Adapt to what a save has cost."""
        self._costs.stall_seconds.append(stall_seconds)
        self._costs.write_seconds.append(write_seconds)
        self._adapted = self._policy.interval_seconds(self._costs)

    def _read_control(self) -> None:
        if self._control is None:
            return
        try:
            changed = self._control.stat().st_mtime_ns
            if changed == self._control_changed:
                return
            self._control_changed = changed
            self._published = Control.read(self._control).checkpoint_seconds
        except OSError:
            return  # not there yet
        except ValueError as error:
            self._log(f"{error}; a checkpoint is still saved every {self.seconds:g} s")
