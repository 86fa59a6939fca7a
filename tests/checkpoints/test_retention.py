"""Which checkpoints are kept, and that clearing away harms none of them."""

from __future__ import annotations

import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

import pytest

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import best_checkpoint
from crucible.checkpoints.retention import retain
from crucible.jobs.job import Job
from crucible.reports.report import loss_cell
from crucible.store import Store
from tests.checkpoints.committing import commit, restored_step
from tests.faults.faulty_store import Died, DiesAfter, FaultyStore
from tests.faults.small_jobs import new_job, running


def test_retention_keeps_the_last_the_best_and_the_evaluated(job: Job, scratch: Path) -> None:
    attempt = running(job, 1)
    losses = {10: 3.0, 20: 2.0, 30: 1.0, 40: 1.5, 50: 1.2, 60: None, 70: 1.1, 80: float("nan")}
    for step, loss in losses.items():
        commit(attempt, scratch, step, val_loss=loss)
    job.store.write("models/step-00000010/README.md", b"a model card")
    deleted = retain(Checkpoints(job), keep_last=2)
    assert [c.step for c in deleted] == [60, 50, 40, 20]
    assert [c.step for c in Checkpoints(job).list()] == [80, 70, 30, 10]
    assert len(job.store.folders("checkpoints")) == 4
    assert retain(Checkpoints(job), keep_last=2) == []


def test_the_best_is_found_by_what_was_measured_alike(job: Job, scratch: Path) -> None:
    attempt = running(job, 1)
    commit(attempt, scratch, 10, val_loss=1.5, estimated_val_loss=1.5)
    commit(attempt, scratch, 20, val_loss=1.6, estimated_val_loss=1.4)  # the end: 1.6 over the whole split
    assert (best := best_checkpoint(Checkpoints(job).list())) is not None
    assert best.step == 20
    assert loss_cell(best) == "1.4000 (whole split 1.6000)"
    commit(attempt, scratch, 30, val_loss=1.7, estimated_val_loss=1.7)  # a person raised max_iters
    retain(Checkpoints(job), keep_last=1)
    assert [c.step for c in Checkpoints(job).list()] == [30, 20]


@pytest.mark.parametrize("losses", [["n/a", 1.0, 2.0], [float("nan"), 1.0, 2.0], [None, 1.0, True], [3.0, 1.0, "inf"]])
def test_a_loss_that_is_no_number_is_never_the_best(job: Job, scratch: Path, losses: list[object]) -> None:
    attempt = running(job, 1)
    for step, loss in enumerate(losses, start=1):
        commit(attempt, scratch, step, val_loss=loss)
    commit(attempt, scratch, 9)
    retain(Checkpoints(job), keep_last=1)
    assert [c.step for c in Checkpoints(job).list()] == [9, 2]


def test_death_at_any_point_of_retention_harms_no_checkpoint(store: Store, scratch: Path, fast_disk: None) -> None:
    for operations in itertools.count():
        job = new_job(store, f"job-{operations}")
        attempt = running(job, 1)
        for step in (10, 20, 30, 40):
            commit(attempt, scratch / job.job_id, step)
        dies = DiesAfter(operations)
        mortal = Job(FaultyStore(store, dies), job.job_id)
        with suppress(Died):
            retain(Checkpoints(mortal), keep_last=2)
        left = Checkpoints(job).list()
        assert [c.step for c in left[:2]] == [40, 30]
        assert all(Checkpoints(job).verify(c) is None for c in left), "a half-deleted checkpoint was listed"
        running(job, 2, from_step=40)  # the next attempt's retention clears what is left
        retain(Checkpoints(job), keep_last=2)
        assert job.store.folders("checkpoints") == ["step-00000030.attempt-0001", "step-00000040.attempt-0001"]
        if not dies.died:
            assert operations > 20
            return


def test_what_superseded_attempts_left_is_cleared(job: Job, scratch: Path) -> None:
    first = running(job, 1)
    commit(first, scratch, 10)
    commit(first, scratch, 20)
    job.store.write("checkpoints/step-00000030.attempt-0001/model.bin", b"an upload that was cut short")
    second = running(job, 2, from_step=10)  # 20 did not verify
    commit(second, scratch, 15)
    job.store.write("checkpoints/step-00000025.attempt-0002/model.bin", b"an upload on its way")
    job.store.write("checkpoints/notes of a person/read.me", b"hello")
    retain(Checkpoints(job), keep_last=3)
    assert job.store.folders("checkpoints") == [
        "notes of a person",
        "step-00000010.attempt-0001",
        "step-00000015.attempt-0002",
        "step-00000025.attempt-0002",
    ]


def test_retention_of_one_who_slept_through_two_successors_deletes_nothing_of_theirs(
    store: Store, scratch: Path
) -> None:
    """The machine was suspended in the middle of its retention and wakes up long after it was given up for lost."""
    job = new_job(store)
    commit(running(job, 1), scratch, 10)

    def meanwhile(operation: str, key: str) -> None:
        nonlocal slept
        if slept or operation != "folders" or key != "attempts" or next(listings) == 0:
            return
        slept = True
        commit(running(job, 2, from_step=10), scratch, 20)
        running(job, 3, from_step=20)

    slept = False
    listings = itertools.count()
    retain(Checkpoints(Job(FaultyStore(store, meanwhile), "job")))
    assert slept
    assert restored_step(job, scratch / "restore") == 20


def test_restoring_beside_retention_always_finds_a_whole_one(store: Store, scratch: Path, fast_disk: None) -> None:
    """Evaluation and reports restore while the training job retains."""
    job = new_job(store)
    attempt = running(job, 1)
    commit(attempt, scratch, 1)
    over = threading.Event()

    def restore(me: int) -> int:
        steps = []
        while not over.is_set() or not steps:
            steps.append(restored_step(job, scratch / f"reader-{me}"))
        assert steps == sorted(steps)
        return len(steps)

    with ThreadPoolExecutor(2) as pool:
        readers = [pool.submit(restore, me) for me in range(2)]
        try:
            for step in range(2, 40):
                commit(attempt, scratch, step)
                retain(Checkpoints(job), keep_last=1)
        finally:
            over.set()
        assert all(reader.result() for reader in readers)
