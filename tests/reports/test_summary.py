from __future__ import annotations

from pathlib import Path

import pytest

from crucible.jobs.records import EndReason, Limits
from crucible.jobs.status import JobState
from crucible.reports import Metrics, job_report, summarise
from crucible.store import Store
from tests.reports.history import SECONDS_PER_STEP, Past, interrupted_twice, loss


def test_every_attempt_tells_what_it_lost_and_how_long_the_way_back_took(store: Store, tmp_path: Path) -> None:
    summary = summarise(interrupted_twice(store, tmp_path).job)

    assert [(a.from_step, a.to_step, a.steps_lost) for a in summary.attempts] == [
        (0, 600, 0),
        (600, 1300, 100),
        (1200, 2000, 0),
    ]
    # The second began 30 s after the first ended. The third: 45 s of silence until the second was given up count,
    # since its machine was gone by then, and 10 s more. Each took 3 s from its claim to its first new step, as the
    # lost one could only say in its heartbeat.
    assert [a.recovery_seconds for a in summary.attempts] == [None, 33.0, 58.0]
    assert [a.end_reason for a in summary.attempts] == [EndReason.INTERRUPTED, EndReason.LOST, EndReason.COMPLETED]
    assert summary.cost_usd == pytest.approx((62 + 72) * 0.36 / 3600 + 82 * 1.0 / 3600)
    assert summary.state is JobState.COMPLETED


def test_the_time_a_person_waited_is_no_recovery(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    past.end(past.attempt(0, 300, [300]), EndReason.BUDGET, "the budget is used up")
    past.pass_time(7 * 3600.0)
    past.end(past.attempt(300, 600, [600], reason="the attempt before was budget used up"), EndReason.CANCELLED, "ada")
    past.pass_time(7 * 3600.0)
    past.attempt(600, 900, [900], reason="started again by hand")

    assert [a.recovery_seconds for a in summarise(past.job).attempts] == [None, 3.0, 3.0]


def test_a_damaged_checkpoint_counts_as_steps_lost(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    past.end(past.attempt(0, 600, [300, 600]), EndReason.INTERRUPTED, "spot reclaim")
    past.attempt(300, 310, [])

    assert summarise(past.job).attempts[0].steps_lost == 300


def test_a_running_job_tells_the_newest_losses_and_the_time_left(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    past.attempt(0, 1000, [500])
    past.status(JobState.RUNNING)

    for summary in (summarise(past.job), summarise(past.job, Metrics(past.job).rows())):
        assert (summary.step, summary.total_steps, summary.committed_step) == (1000, 2000, 500)
        assert summary.val_loss == pytest.approx(loss(1000) + 0.1)
        assert summary.seconds_left == pytest.approx(1000 * SECONDS_PER_STEP)


def test_a_job_nobody_took_up_is_summarised(store: Store, tmp_path: Path) -> None:
    past = Past(store, tmp_path)
    past.job.set_limits(Limits(max_cost_usd=3))

    summary = summarise(past.job, Metrics(past.job).rows())

    assert (summary.state, summary.step, summary.total_steps, summary.attempts) == (None, 0, 2000, ())
    assert summary.as_json()["limits"]["max_cost_usd"] == 3


def test_a_damaged_record_is_left_out_and_named(store: Store, tmp_path: Path) -> None:
    past = interrupted_twice(store, tmp_path)
    past.job.store.write("attempts/0002/heartbeat.json", b"{")
    past.job.store.write("limits/0001.json", b"")
    summary = summarise(past.job)
    assert len(summary.attempts) == 3
    (damaged,) = [warning for warning in summary.warnings if "heartbeat.json is damaged" in warning]
    assert f"- Left out: {damaged}" in job_report(past.job)
