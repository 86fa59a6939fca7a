"""What to do about an attempt that is not over: `judge`, a pure function of its records and of what was observed.

    no machine has taken it up      wait; or give it up, because a person, its pool or the placement policy says so
    it sends heartbeats             wait; or ask it to save and stop, because it is to move or a limit is reached
    it is silent                    ask the pool; declare it lost after `Timeouts.lost`, sooner if the run has ended

What the pool says of a run is only a hint: while heartbeats continue, Prefect's Crashed state is ignored.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

from crucible.jobs.records import EndReason, StopRequest
from crucible.supervision.launcher import Hint, PoolSays
from crucible.supervision.retry_policy import Timeouts
from crucible.supervision.snapshot import AttemptView

SAME_REFUSALS = 8
"""So many launches in a row that a pool refuses with the same message, and the refusal counts as permanent."""


@dataclass(frozen=True)
class Observation:
    """What is known of an attempt beyond its records."""

    silent_seconds: float
    """Since its records last changed, by the supervisor's own clock."""
    hint: Hint | None = None
    """The pool's belief; None before it was asked."""
    leave: str | None = None
    """Why the placement policy wants it elsewhere."""
    over_limit: str | None = None
    """Which of the job's limits is reached."""
    waited_for: bool = False
    """Whether its pool's machines are waited for as long as it takes."""
    same_refusals: int = 0
    """Launches just before it that its pool refused with the same message as now."""


@dataclass(frozen=True)
class Wait:
    """Nothing to do."""


@dataclass(frozen=True)
class AskPool:
    """The pool's belief is needed to go on."""


@dataclass(frozen=True)
class AskToStop:
    """It should save and stop."""

    request: StopRequest


@dataclass(frozen=True)
class Declare:
    """It is over."""

    end_reason: EndReason
    message: str


Step = Wait | AskPool | AskToStop | Declare


def judge(attempt: AttemptView, seen: Observation, timeouts: Timeouts) -> Step:
    """What to do about `attempt` now; pure."""
    return _of_running(seen, timeouts) if attempt.claimed else _of_waiting(attempt, seen, timeouts)


def _of_waiting(attempt: AttemptView, seen: Observation, timeouts: Timeouts) -> Step:
    if attempt.stop_request is not None:
        return Declare(attempt.stop_request.end_reason, attempt.stop_request.reason)
    if seen.over_limit is not None:
        return Declare(EndReason.NOT_STARTED, seen.over_limit)
    if seen.hint is None:
        return AskPool()
    if seen.hint.says is PoolSays.ENDED and seen.silent_seconds > timeouts.ended_and_unclaimed:
        return _refused(seen, seen.hint)
    if seen.leave is not None:
        return Declare(EndReason.NOT_STARTED, seen.leave)
    if seen.silent_seconds > timeouts.start and not (seen.waited_for or seen.hint.queued):
        why = f": {seen.hint.message}" if seen.hint.unserved else ""
        return Declare(EndReason.NOT_STARTED, f"no machine took it up within {timeouts.start:.0f} s{why}")
    return Wait()


def _refused(seen: Observation, hint: Hint) -> Declare:
    message = hint.message or "the run ended before a machine took it up"
    if hint.cancelled:
        return Declare(EndReason.CANCELLED, message)
    if hint.permanent:
        return Declare(EndReason.FAILED, message)
    return refusal(message, seen.same_refusals)


def refusal(message: str, same_before: int) -> Declare:
    """A launch that did not come to life: temporary, unless the pool has answered the same too often."""
    if same_before + 1 < SAME_REFUSALS:
        return Declare(EndReason.NOT_STARTED, message)
    return Declare(EndReason.FAILED, f"{message} (refused {SAME_REFUSALS} times in a row with this message)")


def same_refusals(attempts: Sequence[AttemptView], pool: str, message: str) -> int:
    """How many of the last attempts were refused by `pool` with this message; numbers and ids do not count."""
    count = 0
    for view in reversed(attempts):
        if view.ended is None or view.pool != pool or not view.ended.missed:
            break
        if _without_numbers(view.ended.outcome.message) != _without_numbers(message):
            break
        count += 1
    return count


def _of_running(seen: Observation, timeouts: Timeouts) -> Step:
    if seen.silent_seconds > min(timeouts.ended_and_silent, timeouts.lost):
        if seen.hint is None:
            return AskPool()  # which need not be asked about one that sends heartbeats
        ended = seen.hint.says is PoolSays.ENDED and seen.silent_seconds > timeouts.ended_and_silent
        if ended or seen.silent_seconds > timeouts.lost:
            message = f"no sign of life for {seen.silent_seconds:.0f} s"
            if seen.hint.message:
                message += f"; the pool reported: {seen.hint.message}"
            return Declare(EndReason.CANCELLED if seen.hint.cancelled else EndReason.LOST, message)
    if seen.over_limit is not None:
        return AskToStop(StopRequest(end_reason=EndReason.BUDGET, reason=seen.over_limit))
    if seen.leave is not None:
        return AskToStop(StopRequest(end_reason=EndReason.INTERRUPTED, reason=seen.leave))
    return Wait()


def _without_numbers(message: str) -> str:
    return re.sub(r"[0-9a-f-]{8,}|\d+", "#", message)
