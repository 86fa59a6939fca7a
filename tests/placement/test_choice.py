"""The choice of places for a job that is about to start: with a deadline, kept for whoever brings the flow back."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest

from crucible.config import TrainConfig
from crucible.datasets.meta import DatasetMeta
from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, JobSpec, Launch, Notification, Outcome
from crucible.placement.choice import (
    Choice,
    PlacementRequest,
    deadline_policy,
    observed_mtbf_seconds,
    read_choice,
    remember_choice,
)
from crucible.placement.deadline import DeadlinePolicy
from crucible.placement.overflow import OverflowPolicy
from crucible.store import Store
from crucible.supervision.retry_policy import Placement
from tasks.placing import choose, placement_policy_for

CONFIG = TrainConfig.preset("gpt2-124m", max_iters=2000, warmup_iters=10, lr_decay_iters=2000)
SPOT = Placement("ec2-spot", "g6.xlarge", 0.4, mtbf_seconds=36_000.0, startup_seconds=240.0, hours=6.0)
STEADY = Placement("ec2-on-demand", "g6.xlarge", 0.8, startup_seconds=240.0, hours=5.8)
LOCAL = Placement("local", hours=50.0)

pytestmark = pytest.mark.usefixtures("home")


def within(hours: float) -> datetime:
    return datetime.now(UTC) + timedelta(hours=hours)


@pytest.mark.usefixtures("prefect_api")
def test_a_deadline_chooses_offers_that_make_it_and_a_policy_that_keeps_it(store: Store, meta: DatasetMeta) -> None:
    def chosen(hours: float, saved_share: float = 0.0) -> Choice:
        request = PlacementRequest(
            job_id="job",
            config=CONFIG,
            dataset=meta,
            pool="ec2-spot",
            finish_by=within(hours),
            saved_share=saved_share,
        )
        return choose(store, request)

    job = Job.create(store, JobSpec(job_id="job"))
    roomy = chosen(48.0)
    assert [place.pool for place in roomy.placements] == ["ec2-spot", "ec2-on-demand"]
    policy = placement_policy_for(roomy, job, CONFIG)
    assert isinstance(policy, DeadlinePolicy)
    assert (policy.spot, policy.steady, policy.total_steps) == (0, 1, 2000)
    assert policy.report_steps == CONFIG.log_interval
    assert 0 < policy.seconds_per_step * 2000 < roomy.placements[0].hours * 3600

    with pytest.raises(ConfigError, match="longer than the"):
        chosen(0.05)
    assert chosen(0.5, saved_share=0.9).placements, "a tenth of the work is left"
    assert isinstance(placement_policy_for(roomy.model_copy(update={"finish_by": None}), job, CONFIG), OverflowPolicy)


def test_without_two_places_to_choose_between_there_is_no_policy() -> None:
    def policy(*places: Placement) -> DeadlinePolicy | None:
        return deadline_policy(Choice(placements=list(places), finish_by=within(9)), CONFIG, 0, lambda instance: None)

    both = policy(SPOT, LOCAL, STEADY)
    assert both is not None
    assert both.steady == 2, "one's own machine costs nothing, and is too slow to save the deadline"
    assert policy(SPOT) is None
    assert policy(SPOT, LOCAL) is None
    assert policy(STEADY, SPOT) is None, "nobody takes that away"
    assert policy(LOCAL, SPOT, STEADY) is None


def test_the_choice_is_kept_for_the_flow_run_that_made_it(store: Store) -> None:
    job = Job.create(store, JobSpec(job_id="job"))
    choice = Choice(placements=[SPOT, STEADY], finish_by=within(9))
    assert read_choice(job, "run-1") is None
    remember_choice(job, "run-1", choice)
    remember_choice(job, "run-1", Choice(placements=[LOCAL]))
    assert read_choice(job, "run-1") == choice
    assert read_choice(job, "run-2") is None


def test_an_attempt_that_was_moved_is_no_interruption_of_its_pool(store: Store) -> None:
    job = Job.create(store, JobSpec(job_id="job"))

    def ended(number: int, *noticed_by: str) -> None:
        job.decide(Launch(number=number, pool="ec2-spot", reason="test"))
        notes = [Notification(source=source, reason="test") for source in noticed_by]
        reason = EndReason.INTERRUPTED
        job.attempt(number).end(Outcome(end_reason=reason, message="test", seconds=3600, notifications=notes))

    for number in (1, 2, 3):
        ended(number, "ec2-spot")
    assert observed_mtbf_seconds(store, "ec2-spot") == 3600
    ended(4, "supervisor")
    assert observed_mtbf_seconds(store, "ec2-spot") == 4800
