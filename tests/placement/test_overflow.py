"""Out of a queue that does not move: when, where to, and that it says so."""

from __future__ import annotations

from datetime import timedelta

from crucible.estimate.ranking import PoolState
from crucible.jobs.records import EndReason, Outcome
from crucible.jobs.status import JobState
from crucible.placement.overflow import OverflowPolicy
from crucible.store import Store
from crucible.supervision.launcher import Hint, PoolSays
from crucible.supervision.retry_policy import Decision, Placement
from crucible.supervision.snapshot import AttemptView, FinishedAttempt
from crucible.supervision.supervisor import Supervision
from tests.faults.small_jobs import new_job
from tests.faults.world import Listening, Pool, World, alive_for, ends

PLACES = (Placement("docker-gpu"), Placement("ec2-spot", startup_seconds=240.0), Placement("modal"))
FULL, ROOMY = PoolState(1, queued=4), PoolState(1)


def overflow(world: World, **pools: PoolState) -> OverflowPolicy:
    return OverflowPolicy(PLACES, lambda: {name.replace("_", "-"): state for name, state in pools.items()}, world.now)


def waiting(world: World, seconds: float, pool: str = "docker-gpu") -> list[AttemptView]:
    return [AttemptView(pool, world.now() - timedelta(seconds=seconds))]


def test_only_a_long_wait_and_only_for_a_pool_with_room() -> None:
    world = World()
    roomy = overflow(world, docker_gpu=FULL, ec2_spot=FULL, modal=ROOMY)
    assert roomy.why_leave(waiting(world, 290)) is None
    assert roomy.why_leave(waiting(world, 420)) == "waited 7 min for docker-gpu; modal has room"
    assert roomy.why_leave(waiting(world, 420, "ec2-spot")) is None, "its machines take four minutes to start"
    assert roomy.why_leave(waiting(world, 560, "ec2-spot")) == "waited 9 min for ec2-spot; modal has room"
    taken_up = [AttemptView("docker-gpu", world.now() - timedelta(seconds=900), claimed=True)]
    assert roomy.why_leave(taken_up) is None
    for nowhere in ({"modal": PoolState(1, paused=True)}, {"modal": PoolState(0)}, {"modal": FULL}, {}):
        assert overflow(world, **nowhere).why_leave(waiting(world, 420)) is None


def test_the_next_attempt_goes_where_there_is_room_and_otherwise_in_order() -> None:
    world = World()
    decided = Decision(JobState.RUNNING, "the attempt before never started", placement=0)
    gave_up = Outcome(end_reason=EndReason.NOT_STARTED, message="", ended_at=world.now())
    long = AttemptView(
        "docker-gpu", world.now() - timedelta(seconds=420), ended=FinishedAttempt(gave_up, 0, "docker-gpu")
    )
    brief = AttemptView(
        "docker-gpu", world.now() - timedelta(seconds=20), ended=FinishedAttempt(gave_up, 0, "docker-gpu")
    )
    roomy = overflow(world, modal=ROOMY)
    assert roomy.next([long], decided).placement == 2
    assert roomy.next([brief], decided).placement == 0
    assert roomy.next([], decided).placement == 0
    assert overflow(world, modal=FULL).next([long], decided).placement == 0


def test_a_supervised_job_overflows(store: Store) -> None:
    world, job = World(), new_job(store)
    pool = Pool(world, {2: alive_for(5, (6, ends("completed")))}, hints={1: Hint(PoolSays.WAITING)})
    listener = Listening()
    policy = overflow(world, docker_gpu=FULL, modal=ROOMY)
    status = Supervision(
        job, pool, PLACES, listener, placement_policy=policy, sleep=world.sleep, clock=world.clock, wall_clock=world.now
    ).run()
    assert status.state is JobState.COMPLETED
    assert [name for _, name in pool.asked] == ["docker-gpu", "modal"]
    assert any("min for docker-gpu; modal has room" in message for message in listener.messages)
