"""Watching attempts by a clock of its own: what is loss, what is not, and who may decide."""

from __future__ import annotations

import itertools
import logging
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from crucible.checkpoints.commits import Checkpoints
from crucible.errors import FencedOut, StoreUnavailable
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import Claim, EndReason, Heartbeat, Limits, StopRequest, Supervisor
from crucible.jobs.status import JobState, JobStatus, status_of
from crucible.store import Store
from crucible.supervision.launcher import Hint, PoolSays
from crucible.supervision.retry_policy import LOST_SECONDS, Decision, Placement, Timeouts
from crucible.supervision.snapshot import AttemptView
from crucible.supervision.supervisor import Supervision
from tests.faults.faulty_store import FaultyStore
from tests.faults.small_jobs import checkpoint_folder, new_job
from tests.faults.world import Listening, Pool, World, alive_for, beats, claims, ends

CANCEL = StopRequest(end_reason=EndReason.CANCELLED, reason="a person cancelled it")


@pytest.fixture
def world() -> World:
    return World()


@pytest.fixture
def job(store: Store) -> Job:
    return new_job(store)


def supervision(job: Job, world: World, pool: Pool, *placements: str, **fields: Any) -> Supervision:
    places = [Placement(name) for name in placements or ("local",)]
    defaults: dict[str, Any] = {"listener": Listening(), "sleep": world.sleep, "clock": world.clock}
    return Supervision(job, pool, places, **defaults | fields)


def test_a_job_that_goes_well(job: Job, world: World) -> None:
    pool = Pool(world, {1: alive_for(30, (31, ends("completed")))})
    listener = Listening()
    status = supervision(job, world, pool, listener=listener).run()
    assert status.state is JobState.COMPLETED
    assert status_of(job) == status
    assert pool.retired == [(1, EndReason.COMPLETED)]
    assert listener.messages == [
        "attempt 1 goes to local: first attempt",
        "attempt 1 completed at step 10: about completed",
        "job completed: about completed",
    ]


def test_silence_is_loss_by_the_supervisors_own_clock(job: Job, world: World, tmp_path: Path) -> None:
    def commits(attempt: Attempt) -> None:
        Checkpoints(job).commit(attempt, checkpoint_folder(tmp_path, 7))

    pool = Pool(world, {1: alive_for(20, (3, commits)), 2: alive_for(5, (6, ends("completed")))})
    began = world.time
    assert supervision(job, world, pool).run().state is JobState.COMPLETED
    lost = job.attempt(1).read_outcome()
    assert lost is not None
    assert (lost.end_reason, lost.decided_by, lost.committed_step, lost.cost_usd) == (
        EndReason.LOST,
        "supervisor",
        7,
        0.1,
    )
    assert "no sign of life for 4" in lost.message
    assert pool.retired == [(1, EndReason.LOST), (2, EndReason.COMPLETED)]
    assert world.time - began < 16 + LOST_SECONDS + 15, "seen within a minute, and on with it"


def test_a_store_that_is_full_but_readable_makes_no_attempt_lost(job: Job, world: World) -> None:
    """The attempt trains on and cannot write its heartbeats; the supervisor's own writes fail like them."""
    full = False

    def refuse(operation: str, key: str) -> None:
        if full and operation in ("write", "create", "upload"):
            raise StoreUnavailable("No space left on device")

    def fill(value: bool) -> None:
        nonlocal full
        full = value

    pool = Pool(world, {1: alive_for(20, (900, beats(99)), (901, ends("completed")))})
    world.after(25, lambda: fill(True))
    world.after(897, lambda: fill(False))
    status = supervision(Job(FaultyStore(job.root, refuse), job.job_id), world, pool).run()
    assert status.state is JobState.COMPLETED
    assert pool.retired == [(1, EndReason.COMPLETED)]
    assert not job.store.exists("write-test")


def test_a_hiccup_of_the_store_does_not_end_the_supervisor_when_an_attempt_is_lost(job: Job, world: World) -> None:
    failures = iter([StoreUnavailable("503 Slow Down")])

    def fail_once(operation: str, key: str) -> None:
        if operation == "delete" and (error := next(failures, None)) is not None:
            raise error

    pool = Pool(world, {1: alive_for(20), 2: alive_for(5, (6, ends("completed")))})
    status = supervision(Job(FaultyStore(job.root, fail_once), job.job_id), world, pool).run()
    assert status.state is JobState.COMPLETED
    assert pool.retired == [(1, EndReason.LOST), (2, EndReason.COMPLETED)]


def test_a_machine_that_dies_before_its_first_beat_is_lost_too(job: Job, world: World) -> None:
    pool = Pool(world, {1: [(1.0, claims)], 2: alive_for(5, (6, ends("completed")))})
    assert supervision(job, world, pool).run().state is JobState.COMPLETED
    assert pool.retired[0] == (1, EndReason.LOST)


def test_the_pool_saying_ended_is_no_end_while_the_heart_beats(job: Job, world: World) -> None:
    pool = Pool(world, {1: alive_for(200, (201, ends("completed")))}, hints={1: Hint(PoolSays.ENDED, "Crashed")})
    assert supervision(job, world, pool).run().state is JobState.COMPLETED
    assert pool.born == [1]


def test_the_pool_saying_ended_shortens_the_wait_for_a_silent_one(job: Job, world: World) -> None:
    lives = {1: alive_for(10), 2: alive_for(5, (6, ends("completed")))}
    pool = Pool(world, lives, hints={1: Hint(PoolSays.ENDED, "Crashed: worker gone")})
    began = world.time
    supervision(job, world, pool).run()
    lost = job.attempt(1).read_outcome()
    assert lost is not None
    assert "Crashed: worker gone" in lost.message
    assert world.time - began < 40


def test_a_person_cancelling_the_run_in_the_pool_cancels_the_job(job: Job, world: World) -> None:
    pool = Pool(world, {1: alive_for(10)}, hints={1: Hint(PoolSays.ENDED, "Cancelled by ada", cancelled=True)})
    assert supervision(job, world, pool).run().state is JobState.CANCELLED
    assert pool.born == [1]


@pytest.mark.parametrize("life", [alive_for(600), []], ids=["it trains", "no machine has taken it up"])
def test_a_job_cancelled_without_a_signal_is_asked_to_save_and_ends(job: Job, world: World, life: Any) -> None:
    pool = Pool(world, {1: life}, hints={1: Hint(PoolSays.WAITING)})
    status = supervision(job, world, pool, stop_requested=lambda: CANCEL if world.time > 1030 else None).run()
    assert (status.state, status_of(job)) == (JobState.CANCELLED, status)
    request = job.attempt(1).read_stop_request()
    assert request is not None
    assert request.end_reason is EndReason.CANCELLED
    assert pool.born == [1]


def test_what_cannot_be_mended_by_trying_again_ends_the_job(job: Job, world: World) -> None:
    gone = Hint(PoolSays.ENDED, "the container image does not exist", permanent=True)
    pool = Pool(world, {}, hints={1: gone, 2: gone})
    status = supervision(job, world, pool).run()
    assert (status.state, status.reason) == (JobState.FAILED, "the container image does not exist")
    assert len(job.attempts()) == 1


def test_a_slow_pool_is_no_silence(job: Job, world: World) -> None:
    """The server restarts, and each question to it takes longer than a silence may last."""
    slow = LOST_SECONDS + 20
    life = [entry for entry in alive_for(600, (601, ends("completed"))) if not 100 < entry[0] < 130]
    pool = Pool(world, {1: life})
    pool.hint_takes = lambda: slow if 1102.5 < world.time < 1400 else 0.0
    assert supervision(job, world, pool).run().state is JobState.COMPLETED
    assert pool.born == [1]
    assert pool.questions > 1, "it was silent for long enough to be asked about"


def test_a_pool_is_not_asked_about_an_attempt_that_speaks_for_itself(job: Job, world: World) -> None:
    pool = Pool(world, {1: alive_for(600, (601, ends("completed")))})
    assert supervision(job, world, pool).run().state is JobState.COMPLETED
    assert pool.questions < 5, "asked once more after its claim; every question costs the pool's server a request"


def test_a_store_that_cannot_be_read_is_no_silence(job: Job, world: World) -> None:
    def weather(operation: str, key: str) -> None:
        if 1030 < world.time < 1630:
            raise StoreUnavailable("connection refused")

    dead_at_20 = Pool(world, {1: alive_for(900, (901, ends("completed")))})
    frail = Job(FaultyStore(job.root, weather), "job")
    # The machine itself reaches the store: it is the supervisor that does not.
    dead_at_20.launch = lambda _job, launch, launch_it=dead_at_20.launch: launch_it(job, launch)  # type: ignore
    listener = Listening(reads_store=True)
    status = supervision(frail, world, dead_at_20, listener=listener).run()
    assert status.state is JobState.COMPLETED
    assert dead_at_20.born == [1]


def test_a_store_away_when_something_must_be_decided_is_waited_for(job: Job, world: World) -> None:
    away = {"until": 0.0}

    def weather(operation: str, key: str) -> None:
        if world.time < away["until"]:
            raise StoreUnavailable("connection refused")

    pool = Pool(world, {1: alive_for(5, (6, ends("interrupted"))), 2: alive_for(5, (6, ends("completed", 20)))})
    pool.launch = lambda _job, launch, launch_it=pool.launch: launch_it(job, launch)  # type: ignore
    pool.retire = lambda *_about: away.update(until=world.time + 300)  # type: ignore
    listener = Listening(reads_store=True)
    frail = Job(FaultyStore(job.root, weather), "job")
    assert supervision(frail, world, pool, listener=listener).run().state is JobState.COMPLETED
    assert pool.born == [1, 2]
    assert any("the store does not answer, waiting: connection refused" in said for said in listener.messages)


def test_a_listener_that_raises_is_not_missed_and_its_error_is_told(
    job: Job, world: World, caplog: pytest.LogCaptureFixture
) -> None:
    class Broken:
        def changed(self, job: Job, message: str) -> None:
            raise RuntimeError("no artifact")

        def watched(self, job: Job, heartbeat: Heartbeat | None) -> None:
            raise RuntimeError("no artifact")

    pool = Pool(world, {1: alive_for(10, (11, ends("completed")))})
    run_logger = logging.getLogger("the run's")
    assert supervision(job, world, pool, listener=Broken(), logger=run_logger).run().state is JobState.COMPLETED
    assert ("the run's", f"job {job.job_id}: what happens cannot be shown") in {
        (record.name, record.getMessage()) for record in caplog.records
    }
    assert "RuntimeError: no artifact" in caplog.text


def test_a_crash_loop_stops_with_an_explanation(job: Job, world: World) -> None:
    pool = Pool(world, {0: alive_for(5, (6, ends("killed", 0)))})
    status = supervision(job, world, pool).run()
    assert status.state is JobState.STOPPED
    assert "last 2 attempts committed nothing new (last: workload killed: about killed)" in status.reason
    assert pool.born == [1, 2]


def test_failure_is_final_until_a_person_starts_again(job: Job, world: World) -> None:
    pool = Pool(world, {1: alive_for(5, (6, ends("failed"))), 2: alive_for(5, (6, ends("failed")))})
    assert supervision(job, world, pool, flow_run_id="a").run().state is JobState.FAILED
    assert pool.born == [1]
    assert supervision(job, world, pool, flow_run_id="b").run().state is JobState.FAILED
    assert pool.born == [1, 2]
    assert [launch.reason for s in job.attempts() if (launch := s.read_launch())][1] == "started again by hand"


class Killed(BaseException):
    """The supervisor's process is gone."""


@pytest.mark.parametrize("moment", range(32))
def test_a_supervisor_that_dies_after_a_person_started_again_is_followed_by_one_that_tries(
    store: Store, world: World, moment: int
) -> None:
    """At whichever operation it dies: the person asked for another try, and gets exactly one."""
    job = new_job(store)
    pool = Pool(world, {1: alive_for(5, (6, ends("failed"))), 2: alive_for(5, (6, ends("failed")))})
    supervision(job, world, pool, flow_run_id="a").run()
    operations = itertools.count()
    dead = False

    def die(operation: str, key: str) -> None:
        nonlocal dead
        if dead or next(operations) == moment:
            dead = True
            raise Killed

    mortal = Job(FaultyStore(store, die), "job")
    mortal_pool = Pool(world, {2: pool.lives[2]}, born=pool.born)
    mortal_pool.launch = lambda _job, launch: pool.launch(job, launch)  # type: ignore
    with suppress(Killed):
        supervision(mortal, world, mortal_pool, flow_run_id="b").run()
    status = status_of(job)
    assert status is not None
    if status.state is not JobState.FAILED or len(job.attempts()) == 1:  # its presence would bring it back
        assert supervision(job, world, pool, flow_run_id="b").run().state is JobState.FAILED
    assert pool.born == [1, 2]


def test_two_supervisors_the_older_steps_aside(job: Job, world: World) -> None:
    pool = Pool(world, {1: alive_for(60, (61, ends("completed")))})
    statuses: list[JobStatus] = []
    world.after(20, lambda: statuses.append(supervision(job, world, pool, flow_run_id="newer").run()))
    with pytest.raises(FencedOut, match="now supervised by flow run newer"):
        supervision(job, world, pool, flow_run_id="older").run()
    assert [status.state for status in statuses] == [JobState.COMPLETED]
    assert pool.born == [1]
    assert status_of(job) == statuses[0]


def test_the_older_supervisor_steps_aside_in_its_pause_too(job: Job, world: World) -> None:
    pool = Pool(world, {0: [(0.5, ends("not-started", 0))]})
    timeouts = Timeouts(first_retry_delay=300.0)
    later = Pool(world, {2: alive_for(5, (6, ends("completed")))}, born=pool.born)
    world.after(20, lambda: supervision(job, world, later, flow_run_id="newer", timeouts=Timeouts()).run())
    began = world.time
    with pytest.raises(FencedOut):
        supervision(job, world, pool, flow_run_id="older", timeouts=timeouts).run()
    assert world.time - began < 60
    assert status_of(job).state is JobState.COMPLETED  # type: ignore[union-attr]


def test_a_second_supervisor_finds_the_running_attempt(job: Job, world: World) -> None:
    pool = Pool(world, {1: alive_for(60, (61, ends("completed")))})
    world.after(10, _kill)
    with pytest.raises(Killed):
        supervision(job, world, pool).run()
    assert supervision(job, world, pool).run().state is JobState.COMPLETED
    assert pool.born == [1]
    assert len(job.attempts()) == 1


def _kill() -> None:
    raise Killed


def test_a_server_that_is_away_does_not_end_a_running_attempt(job: Job, world: World) -> None:
    """A new supervisor asks for the launch again, to learn of the run; the answer fails, the attempt is well."""
    pool = Pool(world, {1: alive_for(60, (61, ends("completed")))})
    world.after(10, _kill)
    with pytest.raises(Killed):
        supervision(job, world, pool).run()
    pool.refuses.add(1)
    assert supervision(job, world, pool).run().state is JobState.COMPLETED
    assert pool.retired[-1] == (1, EndReason.COMPLETED)


def test_pools_without_capacity_are_tried_in_order_with_growing_pauses(job: Job, world: World) -> None:
    pool = Pool(world, {5: alive_for(5, (6, ends("completed")))}, refuses={1, 2, 3, 4})
    status = supervision(job, world, pool, "spot", "modal").run()
    assert status.state is JobState.COMPLETED
    assert pool.asked == [(1, "spot"), (2, "spot"), (3, "spot"), (4, "modal"), (5, "modal")]
    outcome = job.attempt(1).read_outcome()
    assert outcome is not None
    assert (outcome.end_reason, outcome.message) == (EndReason.NOT_STARTED, "the server does not answer")


def test_when_no_pool_takes_it_the_job_stops(job: Job, world: World) -> None:
    pool = Pool(world, {}, refuses=set(range(20)))
    status = supervision(job, world, pool, "spot", "modal").run()
    assert status.state is JobState.STOPPED
    assert "no pool could start an attempt; the last one reported: the server does not answer" in status.reason
    assert len(job.attempts()) == 6


def test_a_run_nobody_takes_up_is_given_up(job: Job, world: World) -> None:
    hints = {1: Hint(PoolSays.WAITING)}
    pool = Pool(world, {2: alive_for(5, (6, ends("completed")))}, hints=hints)
    began = world.time
    assert supervision(job, world, pool).run().state is JobState.COMPLETED
    outcome = job.attempt(1).read_outcome()
    assert outcome is not None
    assert outcome.end_reason is EndReason.NOT_STARTED
    assert "no machine took it up within 900 s" in outcome.message
    assert world.time - began > 900
    with pytest.raises(FencedOut):  # the machine comes at last
        job.attempt(1).take(Claim(number=1))


def test_a_budget_stop_goes_on_only_when_raised(job: Job, world: World) -> None:
    job.set_limits(Limits(max_cost_usd=1.0))
    stops = ends("budget", limits=Limits(max_cost_usd=1.0))
    pool = Pool(world, {1: alive_for(5, (6, stops)), 2: alive_for(5, (6, ends("completed", 20)))})
    assert supervision(job, world, pool, flow_run_id="a").run().state is JobState.BUDGET_STOP
    assert supervision(job, world, pool, flow_run_id="b").run().state is JobState.BUDGET_STOP
    assert pool.born == [1]
    job.set_limits(Limits(max_cost_usd=2.0))
    assert supervision(job, world, pool, flow_run_id="c").run().state is JobState.COMPLETED
    assert pool.born == [1, 2]


def test_cancel_asks_the_running_attempt_and_waits_for_its_save(job: Job, world: World) -> None:
    def obey(attempt: Attempt) -> None:
        assert attempt.read_stop_request() is not None
        ends(attempt.read_stop_request().end_reason.value, 33)(attempt)

    pool = Pool(world, {1: alive_for(60)})
    supervisor = supervision(job, world, pool)
    world.after(10, _kill)
    with pytest.raises(Killed):
        supervisor.run()
    world.after(3, lambda: obey(job.attempt(1)))
    supervisor.stop(CANCEL, 20)
    outcome = job.attempt(1).read_outcome()
    assert outcome is not None
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.CANCELLED, 33)
    began = world.time
    supervisor.stop(CANCEL, 20)
    assert world.time == began, "there is nothing to wait for"
    status = status_of(job)
    assert status is not None
    assert status.state is JobState.CANCELLED


def test_trained_piece_by_piece(job: Job, world: World) -> None:
    pool = Pool(world, {1: alive_for(5, (6, ends("paused", 10))), 2: alive_for(5, (6, ends("paused", 20)))})
    assert supervision(job, world, pool, stop_at_step=10).run().state is JobState.PAUSED
    assert supervision(job, world, pool, stop_at_step=20).run().state is JobState.PAUSED
    assert [launch.stop_at_step for attempt in job.attempts() if (launch := attempt.read_launch())] == [10, 20]


@pytest.mark.parametrize("life", [alive_for(600), []], ids=["it trains", "no machine has taken it up"])
def test_a_job_is_stopped_within_seconds_while_the_store_is_away(job: Job, world: World, life: Any) -> None:
    """Its pool is asked to end the attempt, since its records cannot be."""

    def weather(operation: str, key: str) -> None:
        if world.time > 1030:
            raise StoreUnavailable("connection refused")

    pool = Pool(world, {1: life}, hints={1: Hint(PoolSays.WAITING)})
    pool.launch = lambda _job, launch, launch_it=pool.launch: launch_it(job, launch)  # type: ignore
    frail = Job(FaultyStore(job.root, weather), "job")
    wanted = lambda: CANCEL if world.time > 1060 else None  # noqa: E731
    status = supervision(frail, world, pool, stop_requested=wanted).run()
    assert status.state is JobState.CANCELLED
    assert world.time < 1066
    assert pool.retired == [(1, EndReason.CANCELLED)]


def test_a_stop_request_to_the_job_ends_it_in_its_pause_between_two_attempts(job: Job, world: World) -> None:
    pool = Pool(world, {0: [(0.5, ends("not-started", 0))]})
    world.after(20, lambda: job.request_stop(CANCEL, Supervisor(number=1).name))
    status = supervision(job, world, pool, timeouts=Timeouts(first_retry_delay=300.0)).run()
    assert (status.state, status.reason) == (JobState.CANCELLED, CANCEL.reason)
    assert world.time < 1030
    assert pool.born == [1]
    assert job.read_stop_request(Supervisor(number=1).name) is None, "carried out"


def test_a_stop_request_to_an_attempt_that_waits_for_a_machine_ends_the_job(job: Job, world: World) -> None:
    pool = Pool(world, {}, hints={1: Hint(PoolSays.WAITING)})
    world.after(20, lambda: job.attempt(1).request_stop(CANCEL))
    assert supervision(job, world, pool).run().state is JobState.CANCELLED
    assert world.time < 1030
    assert pool.born == [1]
    assert pool.retired == [(1, EndReason.CANCELLED)]


def test_a_paused_job_goes_on_from_its_commit(job: Job, world: World) -> None:
    pause = StopRequest(end_reason=EndReason.INTERRUPTED, reason="paused in Prefect")
    saves = [(1030.0 - 1000.0 + seconds, ends("interrupted", 7)) for seconds in (1.0,)]
    pool = Pool(world, {1: alive_for(600, *saves), 2: alive_for(5, (6, ends("completed", 20)))})
    status = supervision(job, world, pool, stop_requested=lambda: pause if 1030 < world.time < 1040 else None).run()
    assert (status.state, status.reason) == (JobState.PAUSED, "paused in Prefect")
    assert supervision(job, world, pool).run().state is JobState.COMPLETED
    assert pool.born == [1, 2]


class Waits:
    """A placement policy that waits for spot as long as it takes, whatever happens."""

    waits_for = frozenset({"spot"})

    def next(self, attempts: Sequence[AttemptView], decision: Decision) -> Decision:
        return replace(decision, placement=0)

    def why_leave(self, attempts: Sequence[AttemptView]) -> str | None:
        return None


REFUSED = "InvalidParameterException: Container Overrides length must be at most 8192, not {}"


def test_refusals_of_a_pool_that_is_waited_for_come_to_an_end(job: Job, world: World) -> None:
    """The same message eight times, with growing delays, though the policy would try for ever."""
    hints = {number: Hint(PoolSays.ENDED, REFUSED.format(8192 + number)) for number in range(1, 60)}
    pool = Pool(world, {}, hints=hints)
    status = supervision(job, world, pool, "spot", placement_policy=Waits()).run()
    assert status.state is JobState.FAILED
    assert "refused 8 times in a row with this message" in status.reason
    assert len(job.attempts()) == 8
    assert world.time - 1000 > 120, "not one after the other"


def test_nothing_escapes_max_attempts(job: Job, world: World) -> None:
    """Not even attempts that never started, each for another reason, on a pool that is waited for."""
    job.set_limits(Limits(max_attempts=12))
    words = ["ash", "beech", "cedar", "date", "elm", "fir", "gum", "hazel", "ivy", "jute", "kapok", "lime", "maple"]
    hints = {number: Hint(PoolSays.ENDED, word) for number, word in enumerate(words, 1)}
    pool = Pool(world, {}, hints=hints)
    status = supervision(job, world, pool, "spot", placement_policy=Waits()).run()
    assert status.state is JobState.STOPPED
    assert "all 12 attempts allowed are used up" in status.reason
    assert len(job.attempts()) == 12


def test_the_jobs_time_is_by_the_supervisors_clock(job: Job, world: World) -> None:
    """The attempt, which believes in another time, is asked to save and stop."""
    job.set_limits(Limits(max_hours=0.01))
    created = job.read_spec().created_at
    pool = Pool(world, {1: alive_for(90, (40.5, ends("budget", limits=Limits(max_hours=0.01))))})
    clock = lambda: created + timedelta(seconds=world.time - 1000)  # noqa: E731
    status = supervision(job, world, pool, wall_clock=clock).run()
    assert status.state is JobState.BUDGET_STOP
    request = job.attempt(1).read_stop_request()
    assert request is not None
    assert (request.end_reason, request.reason) == (EndReason.BUDGET, "the job's 0.01 hours are over")


def test_a_machine_that_is_gone_when_the_jobs_time_is_over_is_lost_all_the_same(job: Job, world: World) -> None:
    """There is nobody left who could be asked to save and stop."""
    job.set_limits(Limits(max_hours=0.01))
    created = job.read_spec().created_at
    status = supervision(
        job,
        world,
        Pool(world, {1: alive_for(30)}),
        wall_clock=lambda: created + timedelta(seconds=world.time - 1000),
        stop_requested=lambda: CANCEL if world.time > 2000 else None,  # else it would wait for ever
    ).run()
    assert (status.state, status.reason) == (JobState.BUDGET_STOP, "the job's 0.01 hours are over; nothing is saved")
    lost = job.attempt(1).read_outcome()
    assert lost is not None
    assert lost.end_reason is EndReason.LOST
