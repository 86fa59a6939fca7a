"""What a training says while it runs: metrics as JSON lines for programs, a line now and then for people."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from crucible.contract import metrics_line

__all__ = ["Metrics", "Progress"]

_SECONDS_BETWEEN_LINES = 2.0


class Metrics:
    """Appends JSON lines to a file; with no file, to nowhere. A full disk ends the metrics, not the training."""

    def __init__(self, path: Path | None, say: Callable[[str], None] = lambda line: None) -> None:
        self._say = say
        self._file: IO[str] | None = None
        if path is not None:
            path.parent.mkdir(parents=True, exist_ok=True)
            self._file = path.open("a", encoding="utf-8")

    def write(self, *, step: int, **figures: float) -> None:
        """One line, at once readable by others."""
        if self._file is None:
            return
        try:
            self._file.write(metrics_line(step, time.time(), figures))
            self._file.flush()
        except OSError as error:
            self._say(f"no more metrics are written to {self._file.name}: {error.strerror or error}")
            self._file = None


class Progress:
    """Measures speed between reports, with evaluation and saving set aside, and prints lines at a readable rate."""

    def __init__(self, step: int, last: int, tokens_per_step: int, say: Callable[[str], None]) -> None:
        self._first_step = self._step = step
        self._last, self._tokens_per_step, self._say = last, tokens_per_step, say
        self._began = self._reported = time.perf_counter()
        self._aside = self._aside_in_all = 0.0
        self._printed = 0.0

    @property
    def tokens_per_second(self) -> float:
        """Over all steps of this process that have been reported."""
        seconds = self._reported - self._began - self._aside_in_all
        return (self._step - self._first_step) * self._tokens_per_step / seconds if seconds > 0 else 0.0

    @contextmanager
    def aside(self) -> Iterator[None]:
        """Time that is not training."""
        began = time.perf_counter()
        yield
        self.add_aside(time.perf_counter() - began)

    def add_aside(self, seconds: float) -> None:
        """Seconds that were not training."""
        self._aside += seconds

    def reached(self, step: int, loss: float) -> dict[str, float]:
        """Report a step; returns its speed."""
        now = time.perf_counter()
        seconds = max(now - self._reported - self._aside, 1e-9)
        speed = (step - self._step) * self._tokens_per_step / seconds
        per_step = seconds / max(step - self._step, 1)
        self._aside_in_all += self._aside
        self._step, self._reported, self._aside = step, now, 0.0
        if now - self._printed >= _SECONDS_BETWEEN_LINES or step == self._last:
            left = int((self._last - step) * per_step)
            self._say(
                f"step {step}/{self._last}: loss {loss:.4f}, {speed:,.0f} tokens/s, "
                f"{left // 3600}:{left // 60 % 60:02d}:{left % 60:02d} left"
            )
            self._printed = now
        return {"tokens_per_second": speed, "seconds_per_step": per_step}
