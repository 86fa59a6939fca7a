"""Tiny jobs and checkpoints for tests of the recovery core.

A checkpoint's `history.json` lists the commits it descends from, each as [attempt, step]: from what is restored one can
read which commits survived and whether two attempts were ever mixed.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import Claim, JobSpec, Launch, Start
from crucible.store import Store

History = list[list[int]]


def new_job(store: Store, job_id: str = "job", **spec: Any) -> Job:
    return Job.create(store, JobSpec(job_id=job_id, **spec))


def launched(job: Job, number: int, **launch: Any) -> Attempt:
    """Attempt `number`, decided upon, not claimed."""
    job.decide(Launch(number=number, pool="local", reason="test", **launch))
    return job.attempt(number)


def claimed(job: Job, number: int) -> Attempt:
    """Attempt `number`, taken up by this process."""
    return launched(job, number).take(Claim(number=number))


def running(job: Job, number: int, from_step: int = 0) -> Attempt:
    """Attempt `number`, taken up, resumed from `from_step`."""
    attempt = claimed(job, number)
    attempt.begin(Start(step=from_step))
    return attempt


def weights(step: int) -> bytes:
    """What the weights of a step are in these tests: a function of the step, so that any mixture shows."""
    return hashlib.sha256(str(step).encode()).digest() * 20


def checkpoint_folder(parent: Path, step: int, history: History | None = None, **state: Any) -> Path:
    """A finished local checkpoint, as a workload leaves it."""
    folder = parent / f"step-{step:08d}.partial"
    (folder / "optimizer state").mkdir(parents=True)
    (folder / "model.bin").write_bytes(weights(step))
    (folder / "optimizer state" / "moments 1.bin").write_bytes(weights(step)[::-1])
    (folder / "empty").write_bytes(b"")
    (folder / "history.json").write_text(json.dumps(history or []))
    (folder / "state.json").write_text(json.dumps({"step": step, **state}))
    return folder.rename(parent / f"step-{step:08d}")


def is_whole(folder: Path, step: int) -> bool:
    """Whether a restored folder is exactly what `checkpoint_folder` made for that step."""
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    return (
        names == {"model.bin", "optimizer state/moments 1.bin", "empty", "history.json", "state.json"}
        and (folder / "model.bin").read_bytes() == weights(step)
        and (folder / "optimizer state" / "moments 1.bin").read_bytes() == weights(step)[::-1]
        and json.loads((folder / "state.json").read_text())["step"] == step
    )


def history_of(folder: Path) -> History:
    return json.loads((folder / "history.json").read_text())  # type: ignore[no-any-return]
