"""What follows an attempt: `decide`, a pure function of the job's history.

completed, paused                     the job has what it was asked for
interrupted, killed, lost             launch again
never started                         launch again after a pause, elsewhere if that goes on
budget used up, cancelled             stop; a person may go on later
failed                                stop; the user's own error is never retried
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from crucible.job_status import JobState
from crucible.records import EndReason, Limits, Outcome

LOST_SECONDS = 45.0
"""A heartbeat that has not moved for so long is taken for the end of its machine."""
ENDED_AND_SILENT_SECONDS = 12.0
"""The same when the pool, too, says that the run has ended: two missed beats confirm it."""
LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class Placement:
    """Where an attempt may run, and at what price."""

    pool: str
    instance: str = ""
    usd_per_hour: float = 0.0
    mtbf_seconds: float | None = None
    reason: str = "as asked"


@dataclass(frozen=True)
class Decision:
    """What comes next: launch again (`state` is RUNNING), or the job's end."""

    state: JobState
    reason: str
    pause_seconds: float = 0.0
    placement: int = 0
    """Index into the placements, for a launch."""


@dataclass(frozen=True)
class Ended:
    """One attempt that is over, as far as deciding needs it."""

    outcome: Outcome
    start_step: int

    @property
    def missed(self) -> bool:
        """No machine ever took it up."""
        return self.outcome.end_reason is EndReason.NOT_STARTED


@dataclass
class Patience:
    """How long to wait for what. Times in seconds."""

    lost: float = LOST_SECONDS
    ended_and_silent: float = ENDED_AND_SILENT_SECONDS
    start: float = 900.0
    """For a launched attempt to be taken up by a machine."""
    first_pause: float = 5.0
    longest_pause: float = 300.0
    tries_per_placement: int = 3
    look: float = LOOK_SECONDS
    """Between two looks at the records; each look is a few requests to the store."""


def decide(
    ended: Sequence[Ended],
    limits: Limits,
    placements: int = 1,
    *,
    attempts: int | None = None,
    spent_usd: float = 0.0,
    age_hours: float = 0.0,
    patience: Patience | None = None,
) -> Decision:
    """What follows from a job's history; pure.

    `ended` holds the attempts to judge by, first to last; `attempts` is the number of all that were ever made, when a
    person started the job again after it had ended and bygones are bygones. The pause before a launch is without
    jitter; `Supervision` adds it.
    """
    patience = patience or Patience()
    last = ended[-1].outcome if ended else None
    if last is not None and (final := _FINAL.get(last.end_reason)):
        return Decision(final, last.message)
    saved = f"; step {last.committed_step} is saved" if last else ""
    if limits.max_cost_usd is not None and spent_usd >= limits.max_cost_usd:
        return Decision(JobState.BUDGET_STOP, f"${spent_usd:.4g} of ${limits.max_cost_usd:g} are spent{saved}")
    if limits.max_hours is not None and age_hours >= limits.max_hours:
        return Decision(JobState.BUDGET_STOP, f"the job's {limits.max_hours:g} hours are over{saved}")
    if last is not None and last.end_reason is EndReason.BUDGET and last.limits == limits:
        return Decision(JobState.BUDGET_STOP, f"{last.message}{saved}")
    if (attempts or len(ended)) >= limits.max_attempts:
        return Decision(JobState.STOPPED, f"all {limits.max_attempts} attempts allowed are used up{saved}")
    if last is None:
        return Decision(JobState.RUNNING, "started again by hand" if attempts else "first attempt")
    fruitless = _trailing([e for e in ended if not e.missed], lambda e: e.outcome.committed_step <= e.start_step)
    if fruitless >= limits.max_attempts_without_progress and not ended[-1].missed:
        return Decision(
            JobState.STOPPED,
            f"the last {fruitless} attempts committed nothing new (last: {last.end_reason.words}: {last.message}); "
            f"stopped so that a crash loop cannot go on costing money",
        )
    missed = _trailing(ended, lambda e: e.missed)
    placement, tries = divmod(missed, patience.tries_per_placement)
    if placement >= placements:
        return Decision(JobState.STOPPED, f"no pool could start an attempt; the last one said: {last.message}")
    pause = min(patience.first_pause * 2 ** (tries - 1), patience.longest_pause) if tries else 0.0
    reason = f"the attempt before was {last.end_reason.words} at step {last.committed_step}: {last.message}"
    return Decision(JobState.RUNNING, reason, pause, placement)


_FINAL = {
    EndReason.COMPLETED: JobState.COMPLETED,
    EndReason.PAUSED: JobState.PAUSED,
    EndReason.CANCELLED: JobState.CANCELLED,
    EndReason.FAILED: JobState.FAILED,
}


def _trailing(entries: Sequence[Ended], holds: Callable[[Ended], bool]) -> int:
    """How many entries at the end fulfil the condition without a gap."""
    return len(list(itertools.takewhile(holds, reversed(entries))))
