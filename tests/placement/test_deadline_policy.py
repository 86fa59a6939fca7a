"""A live job with a deadline: where it goes, when it moves, and that it says why; by a clock of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

import pytest

from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import Claim, EndReason, Heartbeat, Launch, Notification, Outcome, Start
from crucible.jobs.status import JobState
from crucible.placement.deadline import DeadlinePolicy
from crucible.store import Store
from crucible.supervision.launcher import Hint, PoolSays
from crucible.supervision.retry_policy import Placement, Timeouts
from crucible.supervision.snapshot import AttemptView
from crucible.supervision.supervisor import Supervision
from tests.faults.small_jobs import new_job
from tests.faults.world import Listening, World

HOUR = 3600.0
SPOT = Placement("ec2-spot", "g6.xlarge", 0.4, mtbf_seconds=10 * HOUR, startup_seconds=240.0, hours=10.0)
STEADY = Placement("ec2-on-demand", "g6.xlarge", 1.2, startup_seconds=240.0, hours=10.0)
PLACES = (SPOT, STEADY)
STEPS = 3600
STEP_SECONDS = 10.0
"""Ten hours of work."""


@pytest.fixture(autouse=True)
def _simulated(monkeypatch: pytest.MonkeyPatch) -> None:
    """A night is a thousand records that nobody will need after a power cut, and the same every time."""
    monkeypatch.setattr("os.fsync", lambda descriptor: None)
    monkeypatch.setattr("random.uniform", lambda low, high: 1.0)


@dataclass
class Market:
    """A launcher: on-demand machines are always there, spot ones when `spot(hour)` says so. They train, save, obey."""

    world: World
    spot: Callable[[float], bool]
    step_seconds: float = STEP_SECONDS
    committed: int = 0
    pools: list[str] = field(default_factory=list)

    def launch(self, job: Job, launch: Launch) -> None:
        self.pools.append(launch.pool)
        self.world.after(60, lambda: self._offer(job.attempt(launch.number), launch))

    def hint(self, job: Job, launch: Launch) -> Hint:
        return Hint(PoolSays.UNKNOWN)

    def retire(self, job: Job, launch: Launch, outcome: Outcome) -> None:
        """The run is over."""

    def there(self, pool: str) -> bool:
        return pool != SPOT.pool or self.spot(self.world.time / HOUR)

    def _offer(self, attempt: Attempt, launch: Launch) -> None:
        if attempt.read_outcome() is not None:
            return
        if not self.there(launch.pool):
            self.world.after(60, lambda: self._offer(attempt, launch))
            return
        attempt.take(Claim(number=attempt.number))
        attempt.begin(Start(step=self.committed))
        self._train(attempt, launch, self.world.time, self.committed, 0)

    def _train(self, attempt: Attempt, launch: Launch, began: float, first: int, sequence: int) -> None:
        seconds = self.world.time - began
        step = min(STEPS, first + int(seconds / self.step_seconds))
        figures: dict[str, Any] = {
            "step": step,
            "committed_step": step,
            "seconds": seconds,
            "cost_usd": seconds / HOUR * launch.usd_per_hour,
            "first_step_after_seconds": self.step_seconds if step > first else None,
        }
        request = attempt.read_stop_request()
        if step == STEPS:
            self._end(attempt, EndReason.COMPLETED, "done", figures)
        elif request is not None:
            self._end(attempt, request.end_reason, request.reason, figures, "supervisor")
        elif not self.there(launch.pool):
            self._end(attempt, EndReason.INTERRUPTED, "the market took it", figures, "ec2")
        else:
            attempt.write_heartbeat(Heartbeat(sequence=sequence, phase="training", total_steps=STEPS, **figures))
            self.world.after(120, lambda: self._train(attempt, launch, began, first, sequence + 1))

    def _end(
        self, attempt: Attempt, reason: EndReason, message: str, figures: dict[str, Any], source: str = ""
    ) -> None:
        self.committed = figures["step"]
        told = [Notification(source=source, reason=message)] if source else []
        attempt.end(
            Outcome(end_reason=reason, message=message, notifications=told, ended_at=self.world.now(), **figures)
        )


@dataclass
class Night:
    """How a job with a deadline went."""

    state: JobState
    hours: float
    pools: list[str]
    told: list[str]


def night(store: Store, spot: Callable[[float], bool], hours: float, **fields: Any) -> Night:
    """Ten hours of work to be done within `hours`; the world's clock begins at 0."""
    world = World()
    world.time = 0.0
    market = Market(world, spot, **{k: v for k, v in fields.items() if k == "step_seconds"})
    capacity = fields.get("capacity", lambda hour: None)
    finish_by = world.now() + timedelta(hours=hours)
    policy = policy_for(world, finish_by, lambda: capacity(world.time / HOUR))
    listener = Listening()
    status = Supervision(
        new_job(store),
        market,
        PLACES,
        listener,
        placement_policy=policy,
        timeouts=Timeouts(lost=600.0, poll=120.0, placement_review=60.0),
        sleep=world.sleep,
        clock=world.clock,
        wall_clock=world.now,
    ).run()
    return Night(status.state, world.time / HOUR, market.pools, listener.messages)


def policy_for(world: World, finish_by: datetime, capacity: Callable[[], bool | None] = lambda: None) -> DeadlinePolicy:
    return DeadlinePolicy(
        places=PLACES,
        spot=0,
        steady=1,
        finish_by=finish_by,
        total_steps=STEPS,
        seconds_per_step=STEP_SECONDS,
        capacity=capacity,
        clock=world.now,
    )


def told(night: Night, *words: str) -> bool:
    return any(all(word in message for word in words) for message in night.told)


def test_spot_to_the_end_while_there_is_some(store: Store) -> None:
    went = night(store, lambda hour: True, 12.0)
    assert (went.state, went.pools) == (JobState.COMPLETED, ["ec2-spot"])
    assert told(went, "attempt 1 goes to ec2-spot: on spot: 10.5 h of work left, 12.0 h until finish_by")


def test_an_outage_is_waited_out_with_time_to_spare_and_bridged_without(store: Store) -> None:
    """The same outage of four hours, begun in the third hour."""
    there = lambda hour: not 3 <= hour < 7  # noqa: E731
    patient = night(store.child("patient"), there, 20.0)
    assert (patient.state, set(patient.pools)) == (JobState.COMPLETED, {"ec2-spot"})
    assert told(patient, "attempt 2 goes to ec2-spot: waits for spot: 7."), patient.told
    pressed = night(store.child("pressed"), there, 12.0)
    assert pressed.state is JobState.COMPLETED
    assert pressed.hours <= 12.0
    assert "ec2-on-demand" in pressed.pools
    assert told(pressed, "goes to ec2-on-demand: on on-demand:", "of work left", "until finish_by")


def test_spot_that_never_comes_is_not_waited_for_too_long(store: Store) -> None:
    went = night(store, lambda hour: False, 12.0)
    assert went.state is JobState.COMPLETED
    assert went.hours <= 12.0
    assert went.pools[-1] == "ec2-on-demand"
    assert told(went, "attempt 1 never started", "no spot machine for", "moved to on-demand: 10.5 h of work left")


@pytest.mark.parametrize(
    ("slack_minutes", "leaves"),
    [(60, False), (10, False), (8, True), (7, True), (5, False)],
    ids=["plenty", "enough to lose spot and recover", "the last chance", "still in time", "too late to move"],
)
def test_a_job_slower_than_estimated_leaves_spot_while_on_demand_is_still_in_time(
    slack_minutes: float, leaves: bool
) -> None:
    """Halfway at half the speed that was planned; a move costs six minutes."""
    world = World()
    began, step_seconds = world.now(), 20.0
    seconds = STEPS / 2 * step_seconds
    left = 1.05 * STEPS / 2 * step_seconds
    policy = policy_for(world, began + timedelta(seconds=seconds + left + 60 * slack_minutes))
    beat = Heartbeat(sequence=1, phase="training", step=STEPS // 2, seconds=seconds, first_step_after_seconds=20.0)
    world.sleep(seconds)
    why = policy.why_leave([AttemptView("ec2-spot", began, claimed=True, heartbeat=beat)])
    assert (why is not None) is leaves
    assert why is None or why.startswith("moved to on-demand: 10.5 h of work left, 10.6 h until finish_by")


def test_a_machine_that_does_not_come_is_given_up_while_on_demand_is_still_in_time() -> None:
    """A job of four seconds: the thirteen minutes it has are less than spot machines may take to boot."""
    world = World()
    began = world.now()
    policy = replace(policy_for(world, began + timedelta(minutes=13)), total_steps=1, seconds_per_step=4.0)
    waited = 0
    while (why := policy.why_leave([AttemptView("ec2-spot", began)])) is None:
        world.sleep(30)
        waited += 30
    assert 240 < waited <= 13 * 60 - 6 * 60 - 4
    assert why.startswith("no spot machine for 6 min; moved to on-demand: 4 s of work left, 7 min until finish_by")


def test_back_to_spot_when_the_probe_sees_some(store: Store) -> None:
    there = lambda hour: hour >= 3  # noqa: E731
    blind = night(store.child("blind"), there, 11.5)
    assert blind.pools[-1] == "ec2-on-demand"
    went = night(store.child("seeing"), there, 11.5, capacity=there)
    assert (went.state, went.pools[-1]) == (JobState.COMPLETED, "ec2-spot")
    assert went.hours <= 11.5
    assert told(went, "moved back to spot:", "of work left")


def test_speed_is_judged_by_enough_reports_from_the_first_one_on() -> None:
    """The first report comes at step 10, half a minute after the start; a step takes one second."""

    def running(step: int, seconds: float) -> AttemptView:
        beat = Heartbeat(sequence=1, phase="training", step=step, seconds=seconds, first_step_after_seconds=30.0)
        return AttemptView("ec2-spot", World().now(), claimed=True, heartbeat=beat)

    assert running(210, 230.0).seconds_per_step(10) == 1.0
    assert running(200, 220.0).seconds_per_step(10) is None
    assert AttemptView("ec2-spot", World().now()).seconds_per_step() is None
