"""What the workload reports in its metrics file, carried to the records."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

from crucible.jobs.job import Attempt


class MetricsFile:
    """Follows a growing file of JSON lines; a line still being written is left for later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._offset = 0

    def read_new(self) -> list[tuple[dict[str, Any], bytes]]:
        """The whole lines added since the last call, parsed and raw; lines that are no JSON object are passed over."""
        try:
            with self.path.open("rb") as file:
                file.seek(self._offset)
                data = file.read()
        except FileNotFoundError:
            return []
        whole = data[: data.rfind(b"\n") + 1]
        self._offset += len(whole)
        found = []
        for line in whole.splitlines():
            try:
                values = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(values, dict):
                found.append((values, line))
        return found


class MetricsRelay:
    """Carries metrics lines to the attempt's records, in order, from whichever thread comes round to it."""

    def __init__(self, attempt: Attempt) -> None:
        self._attempt = attempt
        self._unsent: list[bytes] = []
        self._sequence = 0
        self._sending = threading.Lock()

    def add(self, line: bytes) -> None:
        self._unsent.append(line)

    def send(self) -> None:
        """Raises `StoreError` when the store does not take them; they are kept for the next time."""
        with self._sending:
            count = len(self._unsent)
            if count:
                self._attempt.append_metrics(self._sequence, b"\n".join(self._unsent[:count]) + b"\n")
                self._sequence += 1
                del self._unsent[:count]


def numbers(values: dict[str, Any]) -> dict[str, float]:
    """The finite numbers among a line's values, `step` and `time` left out."""
    return {
        name: float(value)
        for name, value in values.items()
        if isinstance(value, int | float)
        and not isinstance(value, bool)
        and name not in ("step", "time")
        and abs(value) <= sys.float_info.max
    }
