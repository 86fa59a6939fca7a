"""What to do about an attempt that is not over: the decisions as a table."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest

from crucible.jobs.records import EndReason, Heartbeat, Outcome, StopRequest
from crucible.supervision.attempt_policy import (
    SAME_REFUSALS,
    AskPool,
    AskToStop,
    Declare,
    Observation,
    Wait,
    judge,
    same_refusals,
)
from crucible.supervision.launcher import Hint, PoolSays
from crucible.supervision.retry_policy import Timeouts
from crucible.supervision.snapshot import AttemptView, FinishedAttempt

NOON = datetime(2026, 5, 7, 12, tzinfo=UTC)
ENDED = Hint(PoolSays.ENDED, "Crashed: worker gone")
WAITING, ALIVE, UNKNOWN = Hint(PoolSays.WAITING), Hint(PoolSays.ALIVE), Hint(PoolSays.UNKNOWN)
UNSERVED = Hint(PoolSays.WAITING, "no worker polls the pool slurm", unserved=True)
STOP = StopRequest(end_reason=EndReason.CANCELLED, reason="stopped by ada")


def waiting(**fields: Any) -> AttemptView:
    return AttemptView("spot", NOON, **fields)


@pytest.mark.parametrize(
    ("seconds", "fields", "kind", "reason", "words"),
    [
        (0, {}, AskPool, None, ""),
        (1, {"hint": ENDED}, Wait, None, ""),
        (3, {"hint": ENDED}, Declare, "not-started", "worker gone"),
        (3, {"hint": Hint(PoolSays.ENDED)}, Declare, "not-started", "the run ended before a machine took it up"),
        (3, {"hint": Hint(PoolSays.ENDED, "no image", permanent=True)}, Declare, "failed", "no image"),
        (3, {"hint": Hint(PoolSays.ENDED, "by ada", cancelled=True)}, Declare, "cancelled", "by ada"),
        (3, {"hint": ENDED, "same_refusals": SAME_REFUSALS - 2}, Declare, "not-started", "worker gone"),
        (3, {"hint": ENDED, "same_refusals": SAME_REFUSALS - 1}, Declare, "failed", "refused 8 times in a row"),
        (3, {"hint": WAITING, "leave": "modal has room"}, Declare, "not-started", "modal has room"),
        (899, {"hint": WAITING}, Wait, None, ""),
        (901, {"hint": WAITING}, Declare, "not-started", "no machine took it up within 900 s"),
        (901, {"hint": UNSERVED}, Declare, "not-started", "within 900 s: no worker polls the pool slurm"),
        (9999, {"hint": WAITING, "waited_for": True}, Wait, None, ""),
        (9999, {"hint": Hint(PoolSays.WAITING, queued=True)}, Wait, None, ""),
        (3, {"over_limit": "2 hours are over"}, Declare, "not-started", "2 hours are over"),
    ],
)
def test_an_attempt_that_no_machine_has_taken_up(
    seconds: float, fields: dict[str, Any], kind: type, reason: str | None, words: str
) -> None:
    step = judge(waiting(), Observation(seconds, **fields), Timeouts())
    assert isinstance(step, kind)
    if isinstance(step, Declare):
        assert step.end_reason == reason
        assert words in step.message


def test_a_stop_request_ends_an_attempt_that_waits_without_asking_anybody() -> None:
    step = judge(waiting(stop_request=STOP), Observation(0), Timeouts())
    assert step == Declare(EndReason.CANCELLED, "stopped by ada")


@pytest.mark.parametrize(
    ("seconds", "fields", "kind", "reason", "words"),
    [
        (3, {}, Wait, None, ""),
        (3, {"leave": "moved to on-demand"}, AskToStop, "interrupted", "moved to on-demand"),
        (3, {"over_limit": "2 hours are over", "leave": "moved"}, AskToStop, "budget", "2 hours are over"),
        (13, {}, AskPool, None, ""),
        (13, {"hint": ALIVE}, Wait, None, ""),
        (13, {"hint": ENDED}, Declare, "lost", "no sign of life for 13 s; the pool reported: Crashed: worker gone"),
        (13, {"hint": Hint(PoolSays.ENDED, cancelled=True)}, Declare, "cancelled", "no sign of life"),
        (44, {"hint": UNKNOWN}, Wait, None, ""),
        (46, {"hint": UNKNOWN}, Declare, "lost", "no sign of life for 46 s"),
        (46, {"hint": ALIVE}, Declare, "lost", "no sign of life for 46 s"),
        (46, {"over_limit": "2 hours are over"}, AskPool, None, ""),
        (46, {"hint": ALIVE, "over_limit": "2 hours are over"}, Declare, "lost", "no sign of life for 46 s"),
        (13, {"hint": ALIVE, "over_limit": "2 hours are over"}, AskToStop, "budget", "2 hours are over"),
    ],
)
def test_an_attempt_that_a_machine_has_taken_up(
    seconds: float, fields: dict[str, Any], kind: type, reason: str | None, words: str
) -> None:
    attempt = waiting(claimed=True, heartbeat=Heartbeat(sequence=3, phase="training"))
    step = judge(attempt, Observation(seconds, **fields), Timeouts())
    assert isinstance(step, kind)
    if isinstance(step, Declare):
        assert step.end_reason == reason
        assert words in step.message
    if isinstance(step, AskToStop):
        assert (step.request.end_reason, step.request.reason) == (reason, words)


def test_refusals_with_the_same_message_are_counted_whatever_numbers_they_name() -> None:
    def refused(message: str, pool: str = "spot") -> AttemptView:
        outcome = Outcome(end_reason=EndReason.NOT_STARTED, message=message, decided_by="supervisor")
        return AttemptView(pool, NOON, ended=FinishedAttempt(outcome, 0, pool))

    long, other = "overrides of {} bytes in task 0a1b2c3d{}", refused("no capacity")
    attempts = [other, refused(long.format(8193, 1)), refused(long.format(8200, 2))]
    assert same_refusals(attempts, "spot", long.format(9000, 3)) == 2
    assert same_refusals(attempts, "modal", long.format(9000, 3)) == 0
    assert same_refusals(attempts, "spot", "no capacity") == 0
    assert same_refusals([*attempts, other], "spot", "no capacity") == 1
