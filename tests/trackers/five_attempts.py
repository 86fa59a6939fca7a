"""A job of five attempts, written as it happened, and a tracker that remembers what it was sent."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from datetime import datetime
from pathlib import Path

from crucible.jobs.metrics import Row
from crucible.jobs.records import EndReason
from crucible.jobs.status import JobState
from crucible.store import Store
from crucible.trackers.backends.base import RunEnd, RunRequest
from tests.reports.history import BEGAN, Past

STEPS = list(range(10, 1001, 10))
"""Every step that the job reports."""


def five_attempts(store: Store, folder: Path, job_id: str = "shakespeare", now: datetime = BEGAN) -> Iterator[Past]:
    """The job after each move: losses of attempts that were lost are half a nat too high."""
    past = Past(store, folder, job_id, now=now)
    past.status(JobState.RUNNING)
    first = past.attempt(0, 200, [100, 200])
    yield past
    past.end(first, EndReason.INTERRUPTED, "spot reclaim")
    second = past.attempt(200, 470, [300, 400], reason="interrupted", shift=0.5)
    yield past
    past.end(second, EndReason.LOST, "no sign of life", decided_by="supervisor")
    yield past
    third = past.attempt(300, 500, [500], reason="the checkpoint of step 400 is damaged")
    yield past
    past.end(third, EndReason.KILLED, "out of memory")
    fourth = past.attempt(500, 730, [700], reason="killed", shift=0.5)
    past.end(fourth, EndReason.LOST, "no sign of life", decided_by="supervisor")
    yield past
    fifth = past.attempt(700, 1000, [900, 1000], reason="lost")
    yield past
    past.end(fifth, EndReason.COMPLETED, "done")
    past.status(JobState.COMPLETED, "done")
    yield past


class MemoryRun:
    """A run that keeps what it is sent; `failing` holds what the next calls raise."""

    def __init__(self, request: RunRequest | None = None) -> None:
        self.run_id, self.url = "run-1", "http://tracker/run-1"
        self.newest_step: int | None = None
        self.rows: list[Row] = []
        self.failing: list[Exception] = []
        self.ends: list[RunEnd] = []

    def send(self, rows: Sequence[Row]) -> None:
        if self.failing:
            raise self.failing.pop()
        self.rows += rows

    def finish(self, end: RunEnd) -> None:
        self.ends.append(end)

    def close(self) -> None:
        pass
