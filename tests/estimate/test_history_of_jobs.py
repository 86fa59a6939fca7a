"""Estimates beside the truth: kept at launch, compared at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from crucible.estimate import history
from crucible.estimate.history import PlannedCost
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, JobSpec, Launch, Outcome
from crucible.store import Store, store_at

PLAN = PlannedCost(
    offer="ec2-spot/g.small",
    speed_source="probe",
    low_hours=0.8,
    hours=1.0,
    high_hours=1.5,
    low_usd=0.4,
    usd=0.5,
    high_usd=0.9,
)


def finished_job(store: Store, name: str, seconds: list[float], usd: list[float]) -> Job:
    job = Job.create(store, JobSpec(job_id=name))
    for number, (took, cost) in enumerate(zip(seconds, usd, strict=True), 1):
        job.decide(Launch(number=number, pool="ec2-spot", reason="test"))
        job.attempt(number).end(Outcome(end_reason=EndReason.INTERRUPTED, message="", seconds=took, cost_usd=cost))
    return job


def test_the_first_plan_stands_and_is_compared_with_all_attempts(tmp_path: Path) -> None:
    store = store_at(str(tmp_path))
    job = finished_job(store, "one", [1800, 2700], [0.25, 0.3])
    history.remember_plan(job, PLAN)
    history.remember_plan(job, PLAN.model_copy(update={"hours": 9.0}))
    record = history.remember_result(job)
    assert record is not None
    assert record.hours == pytest.approx(1.25)
    assert record.usd == pytest.approx(0.55)
    assert record.hours_error == pytest.approx(-0.2)
    assert record.within_bounds
    assert history.estimates(store) == [record]
    again = history.remember_result(job)
    assert again == record, "a record is never rewritten"


def test_a_job_without_plan_or_time_is_left_out(tmp_path: Path) -> None:
    store = store_at(str(tmp_path))
    assert history.remember_result(finished_job(store, "no-plan", [10], [0])) is None
    idle = finished_job(store, "no-time", [], [])
    history.remember_plan(idle, PLAN)
    assert history.remember_result(idle) is None


def test_accuracy_over_several_jobs(tmp_path: Path) -> None:
    store = store_at(str(tmp_path))
    for name, hours in (("a", 1.0), ("b", 0.5), ("c", 1.25)):
        job = finished_job(store, name, [hours * 3600], [0.5])
        history.remember_plan(job, PLAN)
        history.remember_result(job)
    together = history.accuracy(history.estimates(store))
    assert together == {
        "jobs": 3,
        "median_error": pytest.approx(0.2),
        "worst_error": pytest.approx(1.0),
        "within_bounds": pytest.approx(2 / 3),
    }
    assert history.accuracy([])["jobs"] == 0
