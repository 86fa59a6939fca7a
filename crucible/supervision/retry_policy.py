"""What follows an attempt: `decide`, a pure function of the job's history.

    completed, paused                     the job has what it was asked for
    interrupted, killed, lost             launch again; elsewhere if a pool takes its machines away too often
    never started                         launch again after a delay, elsewhere if that goes on
    machine unfit                         launch again, on another machine; the end after three in a row
    refused by the pool for good          launch elsewhere; the end if there is no other place
    budget used up, cancelled             stop; a person may continue the job later
    failed                                stop; the user's own error is never retried

Where the next attempt goes is by the order of the places here; a
`crucible.supervision.placement_policy.PlacementPolicy` may know better.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from crucible.formatting import duration
from crucible.jobs.records import EndReason, Limits
from crucible.jobs.status import JobState
from crucible.supervision.snapshot import FinishedAttempt

LOST_SECONDS = 45.0
"""A heartbeat that has not moved for so long is taken for the end of its machine."""
ENDED_AND_SILENT_SECONDS = 12.0
"""The same when the pool, too, says that the run has ended: two missed beats confirm it."""
LOOK_SECONDS = 1.0
MOST_UNFIT_MACHINES = 3
"""So many in a row, and the job stops: each of them costs money before it is found out."""
STARTED_AGAIN = "started again by hand"
"""The reason of a launch that a person asked for; what lies between it and the attempt before is that person's time."""


@dataclass(frozen=True)
class Placement:
    """Where an attempt may run, and at what price."""

    pool: str
    instance: str = ""
    usd_per_hour: float = 0.0
    """Of all nodes together."""
    nodes: int = 1
    """How many machines, at most."""
    mtbf_seconds: float | None = None
    """Of all nodes together: the first of them that goes ends the attempt."""
    reason: str = "as asked"
    startup_seconds: float = 0.0
    """From the request to the first step, as far as is known."""
    hours: float = 0.0
    """What the whole job is likely to take there; 0 when that is not known."""


@dataclass(frozen=True)
class Decision:
    """What comes next: launch again (`state` is RUNNING), or the job's end."""

    state: JobState
    reason: str
    pause_seconds: float = 0.0
    placement: int = 0
    """Index into the places, for a launch."""


@dataclass
class Timeouts:
    """How long to wait for what. Times in seconds."""

    lost: float = LOST_SECONDS
    ended_and_silent: float = ENDED_AND_SILENT_SECONDS
    ended_and_unclaimed: float = 2.0
    """A run that its pool calls ended before a machine took it up is given so long to be taken up after all."""
    start: float = 900.0
    """For a launched attempt to be taken up by a machine."""
    first_retry_delay: float = 5.0
    longest_retry_delay: float = 300.0
    launches_per_placement: int = 3
    interruptions_per_placement: int = 4
    """So many machines taken away in a row, each within `short`, and the next attempt goes elsewhere."""
    unfit_machines_per_placement: int = 2
    """So many unfit machines in a row, and the next attempt goes elsewhere: a pool may have only that one."""
    short: float = 1800.0
    poll: float = LOOK_SECONDS
    """Between two looks at the records; each look is a few requests to the store."""
    save: float = 45.0
    """For an attempt that is asked to save and stop when the job ends."""
    placement_review: float = 30.0
    """Between two questions to the placement policy whether a running attempt should move."""


@dataclass(frozen=True)
class History:
    """What a decision rests on."""

    ended: Sequence[FinishedAttempt]
    """The attempts to judge by, first to last."""
    limits: Limits
    pools: Sequence[str] = ("",)
    """The pools of the places to try, in order."""
    attempts: int | None = None
    """All attempts ever made, when they are more: a person started the job again after it had ended."""
    spent_usd: float = 0.0
    age_hours: float = 0.0
    over_budget: str | None = None
    """Why a budget that the job shares with others does not let it go on."""
    timeouts: Timeouts = field(default_factory=Timeouts)


def decide(history: History) -> Decision:
    """What follows from a job's history; pure. The delay is without jitter, which `Supervision` adds."""
    ended, limits = history.ended, history.limits
    last = ended[-1].outcome if ended else None
    if last is not None and not ended[-1].refused and (final := _FINAL.get(last.end_reason)):
        return Decision(final, last.message)
    saved = ""
    if last is not None:
        saved = f"; step {last.committed_step} is saved" if last.committed_step else "; nothing is saved"
    if limits.max_cost_usd is not None and history.spent_usd >= limits.max_cost_usd:
        return Decision(JobState.BUDGET_STOP, f"${history.spent_usd:.4g} of ${limits.max_cost_usd:g} are spent{saved}")
    if limits.max_hours is not None and history.age_hours >= limits.max_hours:
        return Decision(JobState.BUDGET_STOP, f"the job's {limits.max_hours:g} hours are over{saved}")
    if history.over_budget is not None:
        return Decision(JobState.BUDGET_STOP, f"{history.over_budget}{saved}")
    stopped_itself = last is not None and last.end_reason is EndReason.BUDGET and not ended[-1].moved
    if last is not None and stopped_itself and last.limits == limits:
        return Decision(JobState.BUDGET_STOP, f"{last.message}{saved}")
    if (history.attempts or len(ended)) >= limits.max_attempts:
        return Decision(JobState.STOPPED, f"all {limits.max_attempts} attempts allowed are used up{saved}")
    if last is None:
        return Decision(JobState.RUNNING, STARTED_AGAIN if history.attempts else "first attempt")
    unfit = _trailing([e for e in ended if not e.in_vain], lambda e: e.unfit)
    if unfit >= MOST_UNFIT_MACHINES and ended[-1].unfit:
        return Decision(
            JobState.STOPPED,
            f"the last {unfit} machines were not fit to train (last: {last.message}); choose another pool or machine "
            f"type, and look at this one with `crucible doctor`",
        )
    fruitless, too_short = _fruitless([e for e in ended if not e.in_vain and not e.unfit])
    if fruitless >= limits.max_attempts_without_progress and not (ended[-1].in_vain or ended[-1].unfit):
        return Decision(
            JobState.STOPPED,
            f"the last {fruitless} attempts committed nothing new (last: {last.label}: {last.message}); "
            f"stopped so that a crash loop cannot go on costing money",
        )
    place, tries, why = _next_place(ended, history.pools, history.timeouts)
    if place is None and ended[-1].refused:
        return Decision(JobState.FAILED, last.message)
    if place is None:
        return Decision(JobState.STOPPED, f"no pool could start an attempt; the last one reported: {last.message}")
    ending = "refused by its pool" if ended[-1].refused else last.label
    reason = f"the attempt before was {ending} at step {last.committed_step}: {last.message}{too_short}"
    if ended[-1].unfit:  # it restored nothing, so that its step says nothing
        reason = f"the machine of the attempt before was unfit: {last.message}"
    return Decision(JobState.RUNNING, f"{why}{reason}", retry_delay(tries, history.timeouts), place)


def _fruitless(started: Sequence[FinishedAttempt]) -> tuple[int, str]:
    """How many of the last attempts in a row committed nothing though they had the time to, and a warning about the
    last one if it did not.

    A script that saves when it likes, every ten minutes say, is not at fault where its machine went after five.
    """
    count = _trailing(started, lambda e: e.outcome.committed_step <= e.start_step)
    interval = next((e.own_interval_seconds for e in reversed(started) if e.own_interval_seconds), None)
    if not count or interval is None:
        return count, ""
    last = started[-1]
    warning = ""
    if last.outcome.seconds < interval:
        warning = (
            f"; it lasted {duration(last.outcome.seconds)}, and the script saves every {duration(interval)}: let it "
            f"save more often, or choose a pool that interrupts less"
        )
    return sum(e.outcome.seconds >= interval for e in started[-count:]), warning


def retry_delay(tries: int, timeouts: Timeouts) -> float:
    """How long to wait after so many launches in vain at one place."""
    return min(timeouts.first_retry_delay * 2 ** (tries - 1), timeouts.longest_retry_delay) if tries else 0.0


_FINAL = {
    EndReason.COMPLETED: JobState.COMPLETED,
    EndReason.PAUSED: JobState.PAUSED,
    EndReason.CANCELLED: JobState.CANCELLED,
    EndReason.FAILED: JobState.FAILED,
}


def _next_place(
    ended: Sequence[FinishedAttempt], pools: Sequence[str], timeouts: Timeouts
) -> tuple[int | None, int, str]:
    """Index of the place to try, None when none is left; launches in vain there just now; what makes it another one.

    Places come in their order. One that refused is left out; one that does not start the attempt gives way after some
    tries; one that took its machines away too often, or gave unfit ones, gives way for one attempt.
    """
    refused = {entry.pool for entry in ended if entry.refused}
    order = [place for place, pool in enumerate(pools) if pool not in refused]
    why = ""
    started = [entry for entry in ended if not entry.in_vain]
    pool = started[-1].pool if started else None
    short = _trailing(started, lambda e: e.pool == pool and e.taken_away and e.outcome.seconds < timeouts.short)
    unfit = _trailing(started, lambda e: e.pool == pool and e.unfit)
    leave = ""
    if short >= timeouts.interruptions_per_placement:
        leave = f"{pool} took {short} machines away in a row, each within {timeouts.short / 60:.0f} min; "
    elif unfit >= timeouts.unfit_machines_per_placement:
        leave = f"{pool} gave {unfit} unfit machines in a row; "
    if leave and len(order) > 1:
        after = next((n + 1 for n, place in enumerate(order) if pools[place] == pool), 0)
        order, why = order[after:] + order[:after], leave
    missed = sum(entry.missed for entry in ended[len(ended) - _trailing(ended, lambda e: e.in_vain) :])
    turn, tries = divmod(missed, timeouts.launches_per_placement)
    return (order[turn] if turn < len(order) else None), tries, why


def _trailing(entries: Sequence[FinishedAttempt], holds: Callable[[FinishedAttempt], bool]) -> int:
    """How many entries at the end fulfil the condition without a gap."""
    return len(list(itertools.takewhile(holds, reversed(entries))))
