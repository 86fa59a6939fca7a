"""What follows an attempt: the decisions as a table."""

from __future__ import annotations

from typing import Any

import pytest

from crucible.jobs.records import EndReason, Limits, Notification, Outcome
from crucible.supervision.retry_policy import History, Timeouts, decide
from crucible.supervision.snapshot import FinishedAttempt


def ended(reason: str, start: int = 0, committed: int = 10, pool: str = "", **fields: Any) -> FinishedAttempt:
    outcome = Outcome(end_reason=EndReason(reason), message=f"about {reason}", committed_step=committed, **fields)
    return FinishedAttempt(outcome, start, pool)


def own(reason: str, seconds: float) -> FinishedAttempt:
    """An attempt without a commit, at a script that saves every minute."""
    return ended(reason, 5, 5, seconds=seconds, saving={"own_interval_seconds": 60.0})


def missed(pool: str = "") -> FinishedAttempt:
    return ended("not-started", 0, 0, pool)


def refused(pool: str) -> FinishedAttempt:
    return ended("failed", 0, 0, pool, decided_by="supervisor")


def taken(pool: str, count: int, seconds: float = 300.0, **fields: Any) -> list[FinishedAttempt]:
    """So many attempts in a row whose machines went; each had got something done."""
    reasons = ("interrupted", "lost")
    return [ended(reasons[n % 2], 10 * n, 10 * n + 10, pool, seconds=seconds, **fields) for n in range(count)]


@pytest.mark.parametrize(
    ("history", "options", "state", "words"),
    [
        ([], {}, "running", "first attempt"),
        ([], {"attempts": 3}, "running", "started again by hand"),
        ([ended("completed")], {}, "completed", "about completed"),
        ([ended("paused")], {}, "paused", "about paused"),
        ([ended("cancelled")], {}, "cancelled", "about cancelled"),
        ([ended("failed")], {}, "failed", "about failed"),
        ([ended("interrupted")], {}, "running", "interrupted, saved at step 10: about interrupted"),
        ([ended("killed")], {}, "running", "workload killed"),
        ([ended("lost")], {}, "running", "no sign of life"),
        ([ended("superseded")], {}, "running", "superseded"),
        ([ended("failed"), ended("interrupted", 10, 20)], {}, "running", "interrupted"),
        # no progress
        ([ended("lost", 5, 5)], {}, "running", "lost"),
        ([ended("lost", 5, 5), ended("killed", 5, 5)], {}, "stopped", "last 2 attempts committed nothing new"),
        ([ended("lost", 5, 5), ended("lost", 5, 6), ended("lost", 6, 6)], {}, "running", "lost"),
        ([ended("lost", 5, 5), missed(), ended("lost", 5, 5)], {}, "stopped", "committed nothing new"),
        ([ended("interrupted", 5, 5), missed()], {}, "running", "never started"),
        ([ended("completed", 5, 5)], {}, "completed", "about completed"),
        # an unfit machine is nobody's failure
        ([ended("unfit", 0, 0)], {}, "running", "the machine of the attempt before was unfit: about unfit"),
        ([ended("unfit", 5, 5), ended("unfit", 5, 5)], {}, "running", "before was unfit"),
        ([ended("lost", 5, 5), ended("unfit", 5, 5)], {}, "running", "before was unfit"),
        ([ended("lost", 5, 5), ended("unfit", 5, 5), ended("lost", 5, 5)], {}, "stopped", "committed nothing new"),
        ([ended("unfit", 5, 5)] * 3, {}, "stopped", "the last 3 machines were not fit to train (last: about unfit)"),
        ([*[ended("unfit", 5, 5)] * 2, missed(), ended("unfit", 5, 5)], {}, "stopped", "3 machines were not fit"),
        ([*[ended("unfit", 5, 5)] * 2, ended("lost", 5, 9), ended("unfit", 9, 9)], {}, "running", "before was unfit"),
        # a script that saves when it likes may be taken away before it does
        (
            [own("lost", 20), own("lost", 20), own("lost", 20)],
            {},
            "running",
            "lasted 20 s, and the script saves every 60 s",
        ),
        (
            [own("lost", 20), own("lost", 90), own("lost", 90)],
            {},
            "stopped",
            "the last 2 attempts committed nothing new",
        ),
        # nobody takes it up
        ([missed()] * 2, {}, "running", "never started"),
        ([missed()] * 3, {}, "stopped", "no pool could start an attempt; the last one reported: about not-started"),
        ([missed()] * 3, {"placements": 2}, "running", "never started"),
        ([missed()] * 6, {"placements": 2}, "stopped", "no pool could start"),
        ([*[missed()] * 2, ended("lost"), missed()], {}, "running", "never started"),
        # caps
        ([ended("lost")] * 50, {}, "stopped", "all 50 attempts allowed are used up; step 10 is saved"),
        ([ended("lost")], {"attempts": 50}, "stopped", "all 50 attempts"),
        ([ended("completed")] * 50, {}, "completed", "about completed"),
        ([ended("lost")], {"limits": Limits(max_cost_usd=1), "spent_usd": 1.0}, "budget-stop", "$1 of $1 are spent"),
        ([ended("lost")], {"limits": Limits(max_cost_usd=1), "spent_usd": 0.99}, "running", "lost"),
        ([], {"limits": Limits(max_cost_usd=1), "spent_usd": 2.0}, "budget-stop", "$2 of $1 are spent"),
        ([ended("lost")], {"limits": Limits(max_hours=2), "age_hours": 2.0}, "budget-stop", "2 hours are over"),
        ([ended("budget", limits=Limits(max_cost_usd=1))], {"limits": Limits(max_cost_usd=1)}, "budget-stop", "saved"),
        ([ended("budget", limits=Limits(max_cost_usd=1))], {"limits": Limits(max_cost_usd=2)}, "running", "budget"),
        ([ended("budget", limits=Limits(max_cost_usd=1))], {}, "running", "budget"),
    ],
)
def test_what_follows(history: list[FinishedAttempt], options: dict[str, Any], state: str, words: str) -> None:
    limits = options.pop("limits", Limits())
    decision = decide(History(history, limits, ("spot", "modal")[: options.pop("placements", 1)], **options))
    assert decision.state == state
    assert words in decision.reason


def test_pauses_grow_and_then_another_place_is_tried() -> None:
    timeouts = Timeouts(first_retry_delay=5.0, longest_retry_delay=12.0, launches_per_placement=4)
    decisions = [
        decide(History([missed()] * count, Limits(), ("spot", "modal"), timeouts=timeouts)) for count in range(1, 8)
    ]
    assert [d.pause_seconds for d in decisions] == [5, 10, 12, 0, 5, 10, 12]
    assert [d.placement for d in decisions] == [0, 0, 0, 1, 1, 1, 1]


MOVED = [Notification(source="supervisor", reason="moved to on-demand")]


@pytest.mark.parametrize(
    ("history", "place", "words"),
    [
        (taken("spot", 3), 0, "the attempt before was"),
        (taken("spot", 4), 1, "spot took 4 machines away in a row, each within 30 min; the attempt before was lost"),
        ([*taken("spot", 4), *taken("modal", 1)], 0, "the attempt before"),
        (taken("spot", 4, seconds=7200.0), 0, "the attempt before"),
        (taken("spot", 4, notifications=MOVED), 0, "the attempt before"),
        ([*taken("spot", 4), missed("modal")], 1, "spot took 4"),
        ([*taken("spot", 4), *[missed("modal")] * 3], 2, "spot took 4"),
        ([*taken("local", 4)], 0, "local took 4"),
        ([ended("unfit", 0, 0, "spot")], 0, "the machine of the attempt before was unfit"),
        ([ended("unfit", 0, 0, "spot")] * 2, 1, "spot gave 2 unfit machines in a row; the machine of the attempt"),
        ([refused("spot")], 1, "the attempt before was refused by its pool at step 0: about failed"),
        ([refused("spot"), *taken("modal", 1)], 1, "the attempt before was interrupted"),
        ([refused("spot"), *[missed("modal")] * 3], 2, "never started"),
        ([*[missed("spot")] * 2, refused("spot")], 1, "refused by its pool"),
    ],
)
def test_a_pool_that_does_not_work_out_gives_way_to_the_next(
    history: list[FinishedAttempt], place: int, words: str
) -> None:
    decision = decide(History(history, Limits(), ("spot", "modal", "local")))
    assert (decision.state, decision.placement) == ("running", place)
    assert words in decision.reason


def test_the_only_place_is_kept_however_often_it_takes_machines_away() -> None:
    assert decide(History(taken("spot", 9), Limits(), ("spot",))).placement == 0


def test_a_job_that_every_pool_refuses_fails_with_the_last_ones_words() -> None:
    decision = decide(History([refused("spot"), refused("modal")], Limits(), ("spot", "modal")))
    assert (decision.state, decision.reason) == ("failed", "about failed")
