"""Commits and restores as the tests of the commit protocol make them."""

from __future__ import annotations

from pathlib import Path

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import Checkpoint
from crucible.checkpoints.restore import restore
from crucible.jobs.job import Attempt, Job
from tests.faults.small_jobs import checkpoint_folder, is_whole


def commit(attempt: Attempt, scratch: Path, step: int, **state: object) -> Checkpoint:
    parent = scratch / f"attempt-{attempt.number}"
    return Checkpoints(attempt.job).commit(attempt, checkpoint_folder(parent, step, **state))  # type: ignore[arg-type]


def restored_step(job: Job, into: Path) -> int:
    """The step that a new machine would resume from, whole or the test fails; 0 for a fresh start."""
    found = restore(Checkpoints(job), into)
    if found is None:
        return 0
    checkpoint, folder = found
    assert is_whole(folder, checkpoint.step)
    return checkpoint.step


def stored(checkpoint: Checkpoint, name: str) -> str:
    return f"checkpoints/{checkpoint.name}/{name}"
