"""What follows an attempt: the decisions as a table, the watching by a clock of its own, and real processes killed."""

from __future__ import annotations

import heapq
import itertools
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from crucible.checkpoints import Checkpoints
from crucible.deciding import LOST_SECONDS, Ended, Patience, Placement, decide
from crucible.errors import FencedOut, ServiceError, StoreError
from crucible.job_status import JobState, JobStatus, status_of
from crucible.jobs import Attempt, Job
from crucible.records import Claim, EndReason, Heartbeat, Launch, Limits, Outcome, Start
from crucible.store import Store
from crucible.supervision import Hint, PoolSays, Supervision
from tests.agent.harness import newest
from tests.agent.runner import QUICK, ProcessPool, Silent, alive, python
from tests.agent.scripted import weights_after
from tests.faults.faulty_store import FaultyStore
from tests.faults.small_jobs import checkpoint_folder, new_job

# decide()


def ended(reason: str, start: int = 0, committed: int = 10, **fields: Any) -> Ended:
    outcome = Outcome(end_reason=EndReason(reason), message=f"about {reason}", committed_step=committed, **fields)
    return Ended(outcome, start)


def missed() -> Ended:
    return ended("not-started", 0, 0)


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
        # nobody takes it up
        ([missed()] * 2, {}, "running", "never started"),
        ([missed()] * 3, {}, "stopped", "no pool could start an attempt; the last one said: about not-started"),
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
def test_what_follows(history: list[Ended], options: dict[str, Any], state: str, words: str) -> None:
    limits = options.pop("limits", Limits())
    decision = decide(history, limits, options.pop("placements", 1), **options)
    assert decision.state == state
    assert words in decision.reason


def test_pauses_grow_and_then_another_place_is_tried() -> None:
    patience = Patience(first_pause=5.0, longest_pause=12.0, tries_per_placement=4)
    decisions = [decide([missed()] * count, Limits(), 2, patience=patience) for count in range(1, 8)]
    assert [d.pause_seconds for d in decisions] == [5, 10, 12, 0, 5, 10, 12]
    assert [d.placement for d in decisions] == [0, 0, 0, 1, 1, 1, 1]


# The watching, by a clock of its own


class World:
    """Time that passes only while somebody sleeps; what is planned for a moment happens when it comes."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._plans: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()

    def clock(self) -> float:
        return self.time

    def sleep(self, seconds: float) -> None:
        end = self.time + seconds
        while self._plans and self._plans[0][0] <= end:
            moment, _, act = heapq.heappop(self._plans)
            self.time = max(self.time, moment)
            act()
        self.time = max(self.time, end)

    def after(self, seconds: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._plans, (self.time + seconds, next(self._count), act))


Life = Iterable[tuple[float, Callable[[Attempt], object]]]
"""What a machine does with an attempt: seconds after the launch, and the act."""


@dataclass
class Pool:
    """A launcher whose machines live the lives they are given; attempt 3 lives `lives[3]`, others the last one."""

    world: World
    lives: dict[int, Life]
    hints: dict[int, Hint] = field(default_factory=dict)
    hint_takes: Callable[[], float] = lambda: 0.0
    refuses: set[int] = field(default_factory=set)
    asked: list[tuple[int, str]] = field(default_factory=list)
    born: list[int] = field(default_factory=list)
    retired: list[tuple[int, EndReason]] = field(default_factory=list)

    def launch(self, job: Job, launch: Launch) -> None:
        self.asked.append((launch.number, launch.pool))
        if launch.number in self.refuses:
            raise ServiceError("the server does not answer")
        if launch.number in self.born:
            return
        self.born.append(launch.number)
        life = self.lives.get(launch.number) or self.lives.get(0) or []
        for seconds, act in life:
            self.world.after(seconds, lambda act=act: act(job.attempt(launch.number)))

    def hint(self, job: Job, launch: Launch) -> Hint:
        self.world.sleep(self.hint_takes())
        return self.hints.get(launch.number, Hint(PoolSays.ALIVE))

    def retire(self, job: Job, launch: Launch, outcome: Outcome) -> None:
        self.retired.append((launch.number, outcome.end_reason))


class Listening:
    """Remembers what it is told; `reads_store` makes it look at the records, as a report does."""

    def __init__(self, reads_store: bool = False) -> None:
        self.messages: list[str] = []
        self.reads_store = reads_store

    def changed(self, job: Job, message: str) -> None:
        self.messages.append(message)
        if self.reads_store:
            job.cost_usd()

    def watched(self, job: Job, heartbeat: Heartbeat | None) -> None:
        if self.reads_store:
            job.cost_usd()


def claims(attempt: Attempt) -> None:
    """Takes the attempt up and resumes from what is committed."""
    attempt.take(Claim(number=attempt.number))
    newest = next(iter(Checkpoints(attempt.job).list()), None)
    attempt.begin(Start(step=newest.step if newest else 0))


def beats(sequence: int) -> Callable[[Attempt], object]:
    return lambda attempt: attempt.beat(Heartbeat(sequence=sequence, phase="training", step=sequence, cost_usd=0.1))


def ends(reason: str, committed: int = 10, **fields: Any) -> Callable[[Attempt], object]:
    outcome = Outcome(end_reason=EndReason(reason), message=f"about {reason}", committed_step=committed, **fields)
    return lambda attempt: attempt.end(outcome)


def alive_for(seconds: float, *then: tuple[float, Callable[[Attempt], object]]) -> list[tuple[float, Any]]:
    """Claims after 1 s, beats every 5 s until so many seconds after the launch."""
    beating = [(1.0 + moment, beats(moment // 5 + 1)) for moment in range(0, int(seconds), 5)]
    return [(1.0, claims), *beating, *then]


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
    lost = job.attempt(1).outcome
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
    lost = job.attempt(1).outcome
    assert lost is not None
    assert "Crashed: worker gone" in lost.message
    assert world.time - began < 40


def test_a_person_cancelling_the_run_in_the_pool_cancels_the_job(job: Job, world: World) -> None:
    pool = Pool(world, {1: alive_for(10)}, hints={1: Hint(PoolSays.ENDED, "Cancelled by ada", cancelled=True)})
    assert supervision(job, world, pool).run().state is JobState.CANCELLED
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
    pool = Pool(world, {1: alive_for(600, (601, ends("completed")))})
    pool.hint_takes = lambda: slow if 1102.5 < world.time < 1400 else 0.0
    assert supervision(job, world, pool).run().state is JobState.COMPLETED
    assert pool.born == [1]


def test_a_store_that_cannot_be_read_is_no_silence(job: Job, world: World) -> None:
    def weather(operation: str, key: str) -> None:
        if 1030 < world.time < 1630:
            raise StoreError("connection refused")

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
            raise StoreError("connection refused")

    pool = Pool(world, {1: alive_for(5, (6, ends("interrupted"))), 2: alive_for(5, (6, ends("completed", 20)))})
    pool.launch = lambda _job, launch, launch_it=pool.launch: launch_it(job, launch)  # type: ignore
    pool.retire = lambda *_about: away.update(until=world.time + 300)  # type: ignore
    listener = Listening(reads_store=True)
    frail = Job(FaultyStore(job.root, weather), "job")
    assert supervision(frail, world, pool, listener=listener).run().state is JobState.COMPLETED
    assert pool.born == [1, 2]
    assert any("the store does not answer, waiting: connection refused" in said for said in listener.messages)


def test_a_listener_that_raises_is_not_missed(job: Job, world: World) -> None:
    class Broken:
        def changed(self, job: Job, message: str) -> None:
            raise RuntimeError("no artifact")

        def watched(self, job: Job, heartbeat: Heartbeat | None) -> None:
            raise RuntimeError("no artifact")

    pool = Pool(world, {1: alive_for(10, (11, ends("completed")))})
    assert supervision(job, world, pool, listener=Broken()).run().state is JobState.COMPLETED


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
    assert [s.launch.reason for s in job.attempts() if s.launch][1] == "started again by hand"


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
    patience = Patience(first_pause=300.0)
    later = Pool(world, {2: alive_for(5, (6, ends("completed")))}, born=pool.born)
    world.after(20, lambda: supervision(job, world, later, flow_run_id="newer", patience=Patience()).run())
    began = world.time
    with pytest.raises(FencedOut):
        supervision(job, world, pool, flow_run_id="older", patience=patience).run()
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
    outcome = job.attempt(1).outcome
    assert outcome is not None
    assert (outcome.end_reason, outcome.message) == (EndReason.NOT_STARTED, "the server does not answer")


def test_when_no_pool_takes_it_the_job_stops(job: Job, world: World) -> None:
    pool = Pool(world, {}, refuses=set(range(20)))
    status = supervision(job, world, pool, "spot", "modal").run()
    assert status.state is JobState.STOPPED
    assert "no pool could start an attempt; the last one said: the server does not answer" in status.reason
    assert len(job.attempts()) == 6


def test_a_run_nobody_takes_up_is_given_up(job: Job, world: World) -> None:
    hints = {1: Hint(PoolSays.WAITING)}
    pool = Pool(world, {2: alive_for(5, (6, ends("completed")))}, hints=hints)
    began = world.time
    assert supervision(job, world, pool).run().state is JobState.COMPLETED
    outcome = job.attempt(1).outcome
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
        assert attempt.stop_request is not None
        ends(attempt.stop_request.end_reason.value, 33)(attempt)

    pool = Pool(world, {1: alive_for(60)})
    supervisor = supervision(job, world, pool)
    world.after(10, _kill)
    with pytest.raises(Killed):
        supervisor.run()
    world.after(3, lambda: obey(job.attempt(1)))
    supervisor.cancel("pressed Cancel", patience_seconds=20)
    outcome = job.attempt(1).outcome
    assert outcome is not None
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.CANCELLED, 33)
    began = world.time
    supervisor.cancel("again", patience_seconds=20)
    assert world.time == began, "there is nothing to wait for"
    status = status_of(job)
    assert status is not None
    assert status.state is JobState.CANCELLED


def test_trained_piece_by_piece(job: Job, world: World) -> None:
    pool = Pool(world, {1: alive_for(5, (6, ends("paused", 10))), 2: alive_for(5, (6, ends("paused", 20)))})
    assert supervision(job, world, pool, stop_at_step=10).run().state is JobState.PAUSED
    assert supervision(job, world, pool, stop_at_step=20).run().state is JobState.PAUSED
    assert [attempt.launch.stop_at_step for attempt in job.attempts() if attempt.launch] == [10, 20]


# Real processes


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "pool"
    folder.mkdir()
    return folder


def until(holds: Callable[[], object], seconds: float = 30.0) -> None:
    """Wait until it holds."""
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end, "waited in vain"
        time.sleep(0.01)


def commits_of(job: Job) -> int:
    newest = next(iter(Checkpoints(job).list()), None)
    return newest.step if newest else 0


def workload_of(agent: int) -> int:
    """The pid of the agent's child."""
    for child in Path(f"/proc/{agent}/task").glob("*/children"):
        if pids := child.read_text().split():
            return int(pids[0])
    return 0


def test_through_kills_of_workload_agent_and_group(job: Job, scratch: Path) -> None:
    """Four deaths; the weights at the end are those of a run that nothing disturbed, and no commit is lost."""
    gate = scratch / "gate"
    options = {
        "steps": 40,
        "every": 4,
        "attempts": {
            "1": {"at": {"9": "kill"}},
            "2": {"at": {"17": f"wait {gate}"}},
            "3": {"at": {"25": f"wait {gate}"}},
            "4": {"at": {"33": f"wait {gate}"}},
        },
    }
    pool = ProcessPool(scratch, options)
    promised: list[int] = []

    def strike(number: int, step: int) -> None:
        until(lambda: commits_of(job) >= step)
        promised.append(commits_of(job))
        agent = pool.pid(number)
        if number == 2:
            os.kill(workload_of(agent), signal.SIGKILL)
        elif number == 3:
            workload = workload_of(agent)
            os.kill(agent, signal.SIGKILL)
            until(lambda: not alive(workload))
        else:
            os.kill(workload_of(agent), signal.SIGKILL)
            os.killpg(agent, signal.SIGKILL)

    class Chaos(Silent):
        def __init__(self) -> None:
            self.struck: set[int] = set()

        def watched(self, job: Job, heartbeat: Heartbeat | None) -> None:
            number = len(job.attempts())
            if heartbeat is not None and number in (2, 3, 4) and number not in self.struck:
                self.struck.add(number)
                strike(number, {2: 16, 3: 24, 4: 32}[number])

    try:
        status = Supervision(job, pool, [Placement("local")], Chaos(), patience=QUICK).run()
    finally:
        _end(pool.children.values())
    assert status.state is JobState.COMPLETED, status.reason
    reasons = [attempt.outcome.end_reason for attempt in job.attempts() if attempt.outcome]
    assert reasons == [EndReason.KILLED, EndReason.KILLED, EndReason.LOST, EndReason.LOST, EndReason.COMPLETED]
    starts = [attempt.start.step for attempt in job.attempts() if attempt.start]
    assert starts == [0, 8, 16, 24, 32]
    assert promised == [16, 24, 32]
    assert newest(job, scratch)[1] == weights_after(40)  # type: ignore[index]


def test_a_killed_supervisor_is_followed_by_one_that_finds_its_attempt(job: Job, scratch: Path) -> None:
    options = {"steps": 12, "every": 4, "at": {"9": f"wait {scratch}/gate"}}
    arguments = ("supervise", job.root.uri, job.job_id, str(scratch), json.dumps(options))
    first = python(*arguments)
    try:
        until(lambda: commits_of(job) >= 8)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        second = python(*arguments)
        until(lambda: (found := job.newest_supervisor()) is not None and found.pid == second.pid)
        (scratch / "gate").touch()
        assert second.wait(30) == 0
    finally:
        _end([first])
    assert status_of(job).state is JobState.COMPLETED  # type: ignore[union-attr]
    assert len(job.attempts()) == 1
    assert newest(job, scratch)[1] == weights_after(12)  # type: ignore[index]


def _end(children: Iterable[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
