"""What the attempts of a job reported, put together into one history."""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Iterable, MutableMapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeGuard

from crucible.errors import ObjectMissing, RecordDamaged
from crucible.jobs.job import Attempt, Job
from crucible.settings import MOST

if TYPE_CHECKING:
    import pandas as pd

PARALLEL_READS = 8

Row = dict[str, float]
"""What is known of one step: `step`, `attempt`, `time` (unix seconds) and the metrics reported for it."""


@dataclass
class Metrics:
    """Reads a job's metrics; one kept for the life of a process reads each piece from the store only once.

    An attempt writes a piece every few seconds and never touches it again, so a long job has thousands of them.
    """

    job: Job
    _pieces: MutableMapping[str, list[Row]] = field(default_factory=dict, repr=False)

    def of_attempt(self, attempt: Attempt, pieces: int | None = None, about: int | None = None) -> list[Row]:
        """What one attempt reported: a row for each step, in the order of the steps.

        `pieces`: only the last so many pieces; `about`: only so many pieces, or up to twice as many, spread over all.
        """
        keys = [info.key for info in self.job.store.list(f"attempts/{attempt.number:04d}/metrics")]
        keys = keys[-pieces:] if pieces else keys
        if about and len(keys) > about:
            # Powers of two: most of the pieces that are chosen now are chosen again when there are more.
            stride = 1 << (len(keys) // about).bit_length() - 1
            keys = [*keys[:-1:stride], keys[-1]]
        missing = [key for key in keys if key not in self._pieces]
        if missing:
            with ThreadPoolExecutor(PARALLEL_READS, thread_name_prefix="metrics") as pool:
                for key, data in zip(missing, pool.map(self._read, missing), strict=True):
                    self._pieces[key] = _parse(data.splitlines(), attempt.number)
        return _one_row_per_step(row for key in keys for row in self._pieces[key])

    def _read(self, key: str) -> bytes:
        try:
            return self.job.store.read(key)
        except (ObjectMissing, RecordDamaged):
            return b""

    def rows(self, until: int | None = None) -> list[Row]:
        """The job's history in the order of its steps, over all attempts or those up to number `until`.

        An attempt that resumed from step N replaces what earlier ones reported beyond N: those steps were lost and
        trained again.
        """
        history: list[Row] = []
        for attempt in self.job.attempts():
            if until is not None and attempt.number > until:
                break
            start = attempt.read_start()
            if start is not None:
                history = [row for row in history if row["step"] <= start.step]
                history += self.of_attempt(attempt)
        return _one_row_per_step(history)


def merged_metrics(job: Job) -> pd.DataFrame:
    """A job's metrics over all attempts, one row for each step that was reported: `step`, `attempt`, `time`, and a
    column for each metric, empty where it was not reported; see `Metrics.rows` for steps that were trained twice.
    """
    import pandas as pd

    rows = Metrics(job).rows()
    first = ["step", "attempt", "time"]
    others = dict.fromkeys(name for row in rows for name in row if name not in first)
    frame = pd.DataFrame(rows, columns=[*first, *others])
    return frame.astype({"step": int, "attempt": int})


def _parse(lines: Iterable[bytes], attempt: int) -> list[Row]:
    rows = []
    for line in lines:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue  # damaged: a gap in the curve, and no reason to show none
        if isinstance(values, dict) and is_step(values.get("step")):
            row = {name: value for name, value in values.items() if _is_number(value)}
            if not _is_time(row.get("time")):
                row.pop("time", None)
            rows.append(row | {"attempt": attempt})
    return rows


def is_step(value: Any) -> TypeGuard[int]:
    """Whether a value is the number of a step: workloads write what they like."""
    return isinstance(value, int) and not isinstance(value, bool) and abs(value) <= MOST


def _is_number(value: Any) -> bool:
    """Not finite is a number, too: the loss of a training that went wrong. A whole number may be too large for one."""
    if isinstance(value, int):
        return not isinstance(value, bool) and abs(value) <= sys.float_info.max
    return isinstance(value, float)


def _is_time(value: float | None) -> bool:
    """Unix seconds that can be subtracted and divided."""
    return value is not None and abs(value) <= MOST


def _one_row_per_step(rows: Iterable[Row]) -> list[Row]:
    """A step may be reported in several lines: its training loss, its validation loss, later what its checkpoint cost.
    The last word counts, but the time is that of the first line.
    """
    steps: defaultdict[float, Row] = defaultdict(dict)
    for row in rows:
        known = steps[row["step"]]
        first = {"time": known["time"]} if "time" in known and known["attempt"] == row["attempt"] else {}
        known.update(row | first)
    return [steps[step] for step in sorted(steps)]
