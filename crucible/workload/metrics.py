"""Metrics as JSON lines, appended to a file that others follow."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import IO

from crucible.contract import metrics_line

__all__ = ["Metrics"]


class Metrics:
    """Appends JSON lines to a file, if there is one. A full disk ends the metrics, not the training."""

    def __init__(self, path: Path | None, log: Callable[[str], None] = lambda line: None) -> None:
        self._log = log
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
            self._log(f"no more metrics are written to {self._file.name}: {error.strerror or error}")
            self._file = None
