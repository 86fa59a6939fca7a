"""The fence: of two attempts at one job exactly one commits."""

from __future__ import annotations

import itertools
import json
import random
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.restore import restore
from crucible.checkpoints.retention import retain
from crucible.errors import FencedOut
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, Launch, Outcome, Start
from crucible.store import Store
from tests.checkpoints.committing import commit, restored_step
from tests.faults.faulty_store import FaultyStore
from tests.faults.small_jobs import History, claimed, history_of, launched, new_job, running


def test_late_commits_of_a_superseded_attempt_do_not_count(job: Job, scratch: Path) -> None:
    first = running(job, 1)
    commit(first, scratch, 10)
    second = running(job, 2, from_step=10)
    with pytest.raises(FencedOut):
        commit(first, scratch, 20)
    assert [c.name for c in Checkpoints(job).list()] == ["step-00000010.attempt-0001"]
    commit(second, scratch, 12)
    assert [c.name for c in Checkpoints(job).list()] == ["step-00000012.attempt-0002", "step-00000010.attempt-0001"]


def test_a_manifest_written_while_the_successor_begins_is_not_acknowledged(store: Store, scratch: Path) -> None:
    job = new_job(store)
    commit(running(job, 1), scratch, 10)

    def take_over(operation: str, key: str) -> None:
        if operation == "write" and "manifest" in key:
            running(job, 2, from_step=10)

    slow = Job(FaultyStore(store, take_over), "job")
    with pytest.raises(FencedOut, match="taken over"):
        commit(slow.attempt(1), scratch, 20)
    assert restored_step(job, scratch / "restore") == 10


def test_a_superseded_attempt_cannot_void_what_its_successor_builds_on(job: Job, scratch: Path) -> None:
    """Attempt 2 is paused between its look at the fence and its start record; attempt 3 resumes from step 60."""
    first = running(job, 1)
    commit(first, scratch, 50)
    commit(first, scratch, 60)
    second = claimed(job, 2)
    second.require_current()
    third = claimed(job, 3)
    third.close_earlier_starts()
    third.begin(Start(step=60, from_attempt=1))
    commit(third, scratch, 70)
    with pytest.raises(FencedOut, match="before attempt 2 had begun"):
        second.begin(Start(step=50))
    assert [c.step for c in Checkpoints(job).list()] == [70, 60, 50]
    assert second.read_start() is None
    third.close_earlier_starts()


def test_an_upload_that_the_successor_clears_away_ends_the_commit(store: Store, scratch: Path) -> None:
    job = new_job(store)

    operations: list[str] = []

    def supersede(operation: str, key: str) -> None:
        if key.endswith("model.bin"):
            operations.append(operation)
            if operations[-2:] == ["upload", "size"]:
                successor = running(job, 2)
                retain(Checkpoints(successor.job))

    running(job, 1)
    late = Job(FaultyStore(store, supersede), job.job_id).attempt(1)
    with pytest.raises(FencedOut):
        commit(late, scratch, 10)
    assert Checkpoints(job).list() == []


def test_an_attempt_declared_lost_commits_nothing_more(job: Job, scratch: Path) -> None:
    first = running(job, 1)
    first.end(Outcome(end_reason=EndReason.LOST, message="silent", decided_by="supervisor"))
    with pytest.raises(FencedOut, match="declared lost"):
        commit(first, scratch, 10)
    assert Checkpoints(job).list() == []


class Racer:
    """One attempt as an agent runs it: claim, restore, begin, commit step after step until it is fenced out."""

    def __init__(self, job: Job, number: int, scratch: Path, commits: int) -> None:
        self.job, self.number, self.commits = job, number, commits
        self.scratch = scratch / f"racer-{number}"
        self.acknowledged: History = []

    def run(self) -> None:
        """Ends when superseded, or when all is committed."""
        checkpoints = Checkpoints(self.job)
        try:
            attempt = claimed(self.job, self.number)
            found = restore(checkpoints, self.scratch / "resume")
            step = found[0].step if found else 0
            history = history_of(found[1]) if found else []
            attempt.begin(Start(step=step))
            attempt.require_current()
            for _ in range(self.commits):
                step += 1
                history = [*history, [self.number, step]]
                folder = self.scratch / f"step-{step:08d}"
                folder.mkdir(parents=True)
                (folder / "history.json").write_text(json.dumps(history))
                checkpoints.commit(attempt, folder)
                self.acknowledged.append([self.number, step])
            retain(checkpoints, keep_last=2)
        except FencedOut:
            return


def race(store: Store, scratch: Path, seed: int, racers: int = 2, commits: int = 3) -> list[History]:
    """Attempts 1, 2, … of one job at once; returns what each was promised.

    Each stands still at a random operation, as a suspended machine does, while its successor begins; it goes on when
    that one is through with a random number of operations of its own, and then both run freely.
    """
    job = new_job(store, f"race-{seed}")
    chance = random.Random(seed)
    # Claim and restore are some 15 operations, a commit 12.
    stops_at = [chance.randrange(15 + 12 * commits) for _ in range(racers)]
    sleeps_for = [chance.randrange(15 + 12 * commits) for _ in range(racers)]
    begins = [threading.Event() for _ in range(racers + 1)]
    wakes = [threading.Event() for _ in range(racers + 1)]
    begins[0].set()
    for number in range(1, racers + 1):
        job.decide(Launch(number=number, pool="local", reason="race"))

    def enter(index: int) -> Racer:
        operations = itertools.count()

        def stumble(operation: str, key: str) -> None:
            count = next(operations)
            if index and count == sleeps_for[index - 1]:
                wakes[index - 1].set()
            if index + 1 < racers and count == stops_at[index]:
                begins[index + 1].set()
                wakes[index].wait()

        racer = Racer(Job(FaultyStore(store, stumble), job.job_id), index + 1, scratch / job.job_id, commits)
        begins[index].wait()
        try:
            racer.run()
        finally:
            begins[index + 1].set()
            wakes[index - 1].set()
        return racer

    with ThreadPoolExecutor(racers) as pool:
        promised = [racer.acknowledged for racer in pool.map(enter, range(racers))]
    final = claimed(job, racers + 1)
    found = restore(Checkpoints(final.job), scratch / job.job_id / "final")
    history = history_of(found[1]) if found else []
    lost = [commit for each in promised for commit in each if commit not in history]
    assert not lost, f"seed {seed}: acknowledged but not in the final lineage: {lost}; final: {history}"
    stray = [c.name for c in Checkpoints(final.job).list() if [c.attempt, c.step] not in history]
    assert not stray, f"seed {seed}: counts, but is not in the final lineage: {stray}; final: {history}"
    assert [step for _, step in history] == list(range(1, len(history) + 1)), f"seed {seed}: {history}"
    numbers = [number for number, _ in history]
    assert numbers == sorted(numbers), f"seed {seed}: interleaved: {history}"
    return promised


def test_two_attempts_at_once_200_times(store: Store, scratch: Path, fast_disk: None) -> None:
    """Whatever was acknowledged survives in one single lineage; seeds 0 to 199, some with three at once."""
    both = 0
    with ThreadPoolExecutor(2) as pool:
        rounds = [pool.submit(race, store, scratch, seed, 3 if seed % 4 == 0 else 2) for seed in range(200)]
        for finished in rounds:
            promised = finished.result()
            both += sum(bool(each) for each in promised) > 1
    assert both > 30, "the race is only one if both sides get to commit"


def test_two_attempts_at_once_on_s3(s3_store: Store, scratch: Path) -> None:
    for seed in (1, 2):
        race(s3_store, scratch, seed, commits=2)


def test_launches_do_not_disturb_commits(job: Job, scratch: Path) -> None:
    attempt = running(job, 1)
    launched(job, 2)
    assert commit(attempt, scratch, 5).step == 5
