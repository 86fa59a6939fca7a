"""The placement policy: where a job goes when that is more than a list of places tried in order, by deadline or queue.

The supervisor asks it before each launch (`next`), and every so often while an attempt runs or waits for a machine
(`why_leave`). It sees the job's attempts as `AttemptView`s, which are made of records alone: a supervisor that takes
over asks the same questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from crucible.jobs.records import Heartbeat, Outcome
from crucible.supervision.retry_policy import Decision, FinishedAttempt


@dataclass(frozen=True)
class AttemptView:
    """One attempt, as far as choosing a place needs it."""

    pool: str
    launched_at: datetime
    start_step: int = 0
    claimed: bool = False
    """A machine has taken it up."""
    heartbeat: Heartbeat | None = None
    """Of one that runs."""
    ended: FinishedAttempt | None = None

    @property
    def progress(self) -> Outcome | Heartbeat | None:
        """The record that says how far it got and how long it took."""
        return self.ended.outcome if self.ended else self.heartbeat

    def seconds_per_step(self, report_steps: int = 1) -> float | None:
        """From its first report to its last, evaluations and saves included; None before enough has been reported.

        The workload reports every `report_steps` steps, so that its first report may be of so many steps.
        """
        record = self.progress
        if record is None or record.first_step_after_seconds is None:
            return None
        steps = record.step - self.start_step - report_steps
        seconds = record.seconds - record.first_step_after_seconds
        return seconds / steps if steps >= ENOUGH_REPORTS * report_steps and seconds > 0 else None


ENOUGH_REPORTS = 20
"""Speed is not judged by fewer: one more or less would matter."""


class PlacementPolicy(Protocol):
    """Chooses places. Must not raise."""

    @property
    def waits_for(self) -> frozenset[str]:
        """Pools whose machines are waited for: that none is there just now is no failed launch."""

    def next(self, tries: Sequence[AttemptView], decision: Decision) -> Decision:
        """The launch that the retry policy decided, possibly at another place and with the reason for it."""

    def why_leave(self, tries: Sequence[AttemptView]) -> str | None:
        """Why the last attempt, which is not over, should save and stop (or stop waiting) now; None to go on."""
