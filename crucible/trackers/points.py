"""Which rows of a job's metrics are final.

Trackers take each step once and in ascending order. An attempt that resumes from a checkpoint trains the steps after
it again, so a row is sent when

* a commit covers its step: no later attempt trains it again, unless the checkpoint turns out damaged;
* or the running attempt reported it ten minutes ago: scripts may save rarely or never, and people watch;
* or the job has ended.

A step at or below the newest one sent is never sent again, whatever was restored. So the curve has neither gap nor
overlap. Where a script trained steps again after the ten minutes, the tracker keeps their first values; the job's
report has the others.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crucible.jobs.job import Job
from crucible.jobs.metrics import Row
from crucible.jobs.status import JobState, status_of

HOLD_SECONDS = 600.0
_BOOKKEEPING = ("checkpoint_", "max_iters")
"""Beginnings of the names of what is reported for Crucible's own use, after the step's other metrics."""


@dataclass(frozen=True)
class Progress:
    """How far a job is, as its records say."""

    state: JobState | None = None
    committed_step: int = 0
    live_attempt: int | None = None
    over: bool = False
    """Whether the job has ended, for now at least."""


def read_progress(job: Job) -> Progress:
    """Read a few small records; raises `StoreError`, and `RecordDamaged` for those that cannot be read."""
    status = status_of(job)
    state = status.state if status else None
    attempts = job.attempts()
    live = attempts[-1].number if attempts and attempts[-1].read_outcome() is None else None
    over = state is not None and state is not JobState.RUNNING and live is None
    for attempt in reversed(attempts):
        start = attempt.read_start()
        if start is not None:
            last = attempt.read_outcome() or attempt.read_heartbeat()
            committed = max(start.step, last.committed_step if last else 0)
            return Progress(state, committed, live, over)
    return Progress(state, 0, live, over)


def final_rows(history: Sequence[Row], sent_step: int, progress: Progress, now: float) -> list[Row]:
    """The rows to send next, of a history in the order of its steps (`Metrics.rows`).

    `sent_step`: the newest step that the tracker has; `now`: unix seconds.
    """
    beyond = [row for row in history if row["step"] > sent_step]
    if progress.over:
        return beyond
    found = []
    for row in beyond[:-1]:  # the newest step may get more values: its validation loss comes in a line of its own
        aged = row["attempt"] == progress.live_attempt and row.get("time", now) < now - HOLD_SECONDS
        if row["step"] > progress.committed_step and not aged:
            break
        found.append(row)
    return found


def shown_metrics(row: Row) -> dict[str, float]:
    """The metrics of a row as trackers show them, the attempt's number among them; without step and time."""
    return {
        name: float(value)
        for name, value in row.items()
        if name not in ("step", "time") and not name.startswith(_BOOKKEEPING)
    }
