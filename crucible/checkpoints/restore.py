"""From the store to a local folder: the newest commit whose every file verifies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from crucible.checkpoints.commits import PARALLEL_TRANSFERS, Checkpoints
from crucible.checkpoints.manifest import FOLDER, MANIFEST, Checkpoint, StoredFile, best_checkpoint
from crucible.config import TrainConfig
from crucible.contract import step_name
from crucible.errors import CheckpointError, ConfigError, ObjectMissing, RecordDamaged
from crucible.jobs.records import JobSpec
from crucible.store import store_option


def restore(
    checkpoints: Checkpoints, into: Path, *, on_damaged: Callable[[Checkpoint, str], None] | None = None
) -> tuple[Checkpoint, Path] | None:
    """Download the newest commit that verifies to `into/step-…`; None when nothing (whole) is committed.

    `on_damaged` receives each damaged checkpoint and what is wrong with it; the one before it is taken. Raises
    `StoreUnavailable` when the store cannot be reached, `LocalDiskError` when this machine takes no files and
    `CheckpointError` when the newest one is another training's: none of these is a reason to start from nothing.
    """
    spec = checkpoints.job.read_spec()
    passed_over: set[str] = set()
    while True:
        found = ((c, problem) for c, problem in checkpoints.found() if c.name not in passed_over)
        checkpoint, problem = next(found, (None, None))
        if checkpoint is None:
            return None
        target, readable = into / step_name(checkpoint.step), problem is None
        require_own(checkpoint, spec)
        problem = problem or fetch(checkpoints, checkpoint, target)
        if problem is None:
            return checkpoint, target
        shutil.rmtree(target, ignore_errors=True)
        if readable and not checkpoints.job.store.exists(f"{FOLDER}/{checkpoint.name}/{MANIFEST}"):
            continue  # not damaged: retention removed it meanwhile, so there are newer ones
        passed_over.add(checkpoint.name)
        if on_damaged:
            on_damaged(checkpoint, problem)


def choose_checkpoint(checkpoints: Checkpoints, which: str, asked: str) -> Checkpoint:
    """The newest checkpoint (`which` empty), that of a step, or the `best` (the newest while none has a loss).

    A step is the one that people are shown, or the number of the commit. Raises `ConfigError`, which begins with
    `asked`, when there is none.
    """
    found = checkpoints.list()
    if which in ("", "best"):
        chosen = (best_checkpoint(found) if which else None) or next(iter(found), None)
    else:
        chosen = next((c for c in found if which in (str(c.shown_step), str(c.step))), None)
    if chosen is None:
        there = ", ".join(dict.fromkeys(str(checkpoint.shown_step) for checkpoint in found))
        problem = f"has no such checkpoint; there are: {there}" if there else "has saved nothing yet"
        raise ConfigError(f"{asked}: job {checkpoints.job.job_id} {problem}")
    return chosen


def require_own(checkpoint: Checkpoint, spec: JobSpec) -> None:
    """Raise `CheckpointError` if another training made the checkpoint, as far as its workload recorded that."""
    differing = []
    if isinstance(data := checkpoint.state.get("dataset_digest"), str) and data != spec.dataset and spec.dataset:
        differing.append(f"dataset {data} -> {spec.dataset}")
    if isinstance(config := checkpoint.state.get("config"), dict) and spec.config:
        with suppress(ConfigError):  # of a version that had other settings: the workload itself judges it
            differing += TrainConfig.parse(config).changes(spec.config)
    if differing:
        raise CheckpointError(
            f"checkpoint {checkpoint.name} was made by another training than that of job {spec.job_id} "
            f"({', '.join(differing)}); move its folder out of {FOLDER}/ to go on from the one before it"
        )


def fetch(checkpoints: Checkpoints, checkpoint: Checkpoint, target: Path) -> str | None:
    """Download a checkpoint to the folder `target`; returns what is wrong with it, or None."""
    problem = checkpoints.verify(checkpoint)
    if problem is not None:
        return problem
    try:
        download(checkpoints, checkpoint, target)
    except (ObjectMissing, RecordDamaged) as error:
        return str(error)
    return checkpoints.verify(checkpoint, target)


def fetch_chosen(checkpoints: Checkpoints, checkpoint: Checkpoint, target: Path) -> None:
    """`fetch` one that a person chose: raises `CheckpointError` when it is damaged, and leaves nothing then."""
    if problem := fetch(checkpoints, checkpoint, target):
        shutil.rmtree(target, ignore_errors=True)
        job = checkpoints.job.job_id
        raise CheckpointError(
            f"the checkpoint of step {checkpoint.shown_step} of {job} is damaged: {problem}; choose another: "
            f"`crucible checkpoints verify {job}{store_option(checkpoints.job.root)}` finds those that are whole"
        )


def download(checkpoints: Checkpoints, checkpoint: Checkpoint, target: Path) -> None:
    """Fetch a checkpoint's files into the folder `target`, which is replaced."""
    shutil.rmtree(target, ignore_errors=True)

    def bring(file: StoredFile) -> None:
        checkpoints.job.store.download(f"{FOLDER}/{checkpoint.name}/{file.name}", target / file.name)

    with ThreadPoolExecutor(PARALLEL_TRANSFERS, thread_name_prefix="download") as pool:
        list(pool.map(bring, checkpoint.files))
