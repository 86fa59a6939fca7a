"""Budgets that jobs share: what is reserved at the start, and what stops jobs that run."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from crucible.billing.budgets import SECONDS_TO_START, BudgetLimit, Reservation, reserve, why_stop
from crucible.billing.costs import AttemptCost, attempt_costs
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import Claim, EndReason, Heartbeat, JobSpec, Launch, Notification, Outcome
from crucible.jobs.status import JobState, JobStatus
from crucible.store import Store, store_at
from crucible.supervision.retry_policy import Placement
from crucible.supervision.snapshot import SUPERVISOR
from crucible.supervision.supervisor import Supervision
from tests.faults.small_jobs import new_job
from tests.faults.world import Listening, Pool, World, alive_for, ends

NOON = datetime(2026, 5, 7, 12, tzinfo=UTC)
TEN = BudgetLimit("ten", 10.0, stop_jobs=True)


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return store_at(str(tmp_path / "store"))


def running_job(store: Store, name: str, usd: float, usd_per_hour: float = 1.0) -> Job:
    job = Job.create(store, JobSpec(job_id=name))
    job.decide(Launch(number=1, pool="modal", instance="L4", usd_per_hour=0.1, reason="planned cheaper"))
    job.attempt(1).take(Claim(number=1, claimed_at=NOON, usd_per_hour=usd_per_hour))
    beat = Heartbeat(sequence=1, phase="training", seconds=60, cost_usd=usd, usd_per_hour=usd_per_hour)
    job.attempt(1).write_heartbeat(beat)
    state(job, JobState.RUNNING)
    return job


def state(job: Job, where: JobState) -> None:
    job.store.write_model("status.json", JobStatus(state=where, reason="", supervisor=1))


def costs(store: Store) -> list[AttemptCost]:
    return attempt_costs(store, {})


def ask(store: Store, job_id: str, usd: float, now: datetime = NOON) -> str | None:
    return reserve(store, TEN, costs(store), Reservation(job_id=job_id, usd=usd, at=now), now)


def test_ten_jobs_that_start_at_once_get_what_is_there_and_no_more(store: Store) -> None:
    with ThreadPoolExecutor(10) as pool:
        answers = list(pool.map(lambda number: ask(store, f"job-{number}", 4.0), range(10)))
    assert answers.count(None) <= 2, "three would need $12 of $10"
    refused = next(answer for answer in answers if answer is not None)
    assert refused.startswith("the job costs $4.00 at least and $")
    assert "reserved by other jobs" in refused
    again = [ask(store, f"job-{number}", 4.0) for number in range(10)]
    assert again.count(None) == 2, "who was refused left nothing behind, and who asks again keeps its place"


def test_a_reservation_shrinks_with_what_the_job_spends_and_ends_with_it(store: Store) -> None:
    assert ask(store, "first", 6.0) is None
    assert ask(store, "second", 5.0) is not None
    job = running_job(store, "first", usd=2.0)
    assert ask(store, "second", 5.0) is not None, "$2 are spent, $4 of the $6 are still reserved"
    assert ask(store, "second", 4.0) is None
    store.delete(f"{TEN.folder(NOON)}/reservations/0002.json")
    state(job, JobState.COMPLETED)
    assert ask(store, "second", 8.0) is None, "it was done for $2"


def test_a_job_that_never_started_does_not_hold_its_reservation_for_ever(store: Store) -> None:
    assert ask(store, "died", 9.0) is None
    assert ask(store, "next", 5.0) is not None
    assert ask(store, "next", 5.0, NOON + timedelta(seconds=SECONDS_TO_START + 1)) is None


def test_running_jobs_stop_together_before_the_limit_if_the_budget_says_so(store: Store) -> None:
    for name in ("a", "b"):
        running_job(store, name, usd=4.9, usd_per_hour=2.0)
    assert why_stop(TEN, costs(store), NOON) is None, "$9.80, and $0.13 until both have saved"
    running_job(store, "c", usd=0.1, usd_per_hour=2.0)
    reason = why_stop(TEN, costs(store), NOON)
    assert reason == "budget ten: $9.90 of $10.00 spent this month (99 %)"
    assert why_stop(BudgetLimit("ten", 10.0), costs(store), NOON) is None
    assert why_stop(BudgetLimit("ten", 10.0, project="other", stop_jobs=True), costs(store), NOON) is None


def test_a_job_saves_and_stops_at_a_shared_budget_and_goes_on_when_it_is_raised(store: Store) -> None:
    world, job, spent = World(), new_job(store), True

    def saves_when_asked(attempt: Attempt) -> None:
        request = attempt.read_stop_request()
        assert request is not None
        told = Notification(source=SUPERVISOR, reason=request.reason)
        ends(request.end_reason, 7, notifications=[told], limits=job.read_limits())(attempt)

    pool = Pool(world, {1: alive_for(100, (101, saves_when_asked)), 2: alive_for(5, (6, ends("completed")))})

    def supervise() -> JobStatus:
        return Supervision(
            job,
            pool,
            [Placement("local")],
            Listening(),
            over_budget=lambda: "budget ten: used up" if spent and world.time > 1040 else None,
            sleep=world.sleep,
            clock=world.clock,
            wall_clock=world.now,
        ).run()

    stopped = supervise()
    assert (stopped.state, stopped.reason) == (JobState.BUDGET_STOP, "budget ten: used up; step 7 is saved")
    assert job.attempt(1).read_outcome().end_reason is EndReason.BUDGET  # type: ignore[union-attr]
    assert supervise().state is JobState.BUDGET_STOP, "the budget is still used up"
    assert len(pool.born) == 1
    spent = False
    assert supervise().state is JobState.COMPLETED, "its own limits never stood in its way"


def test_an_outcome_of_the_agents_own_cap_still_stops_for_good(store: Store) -> None:
    world, job = World(), new_job(store)
    own_cap = ends("budget", 7, limits=job.read_limits())
    pool = Pool(world, {1: alive_for(5, (6, own_cap))})
    run = Supervision(
        job, pool, [Placement("local")], Listening(), sleep=world.sleep, clock=world.clock, wall_clock=world.now
    )
    assert run.run().state is JobState.BUDGET_STOP
    assert isinstance(job.attempt(1).read_outcome(), Outcome)
