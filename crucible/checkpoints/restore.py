"""From the store to a local folder: the newest commit whose every file verifies."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from crucible.checkpoints.commits import PARALLEL_TRANSFERS, Checkpoints
from crucible.checkpoints.manifest import FOLDER, MANIFEST, Checkpoint, StoredFile
from crucible.contract import step_name
from crucible.errors import ObjectMissing, RecordDamaged


def restore(
    checkpoints: Checkpoints, into: Path, *, on_damaged: Callable[[Checkpoint, str], None] | None = None
) -> tuple[Checkpoint, Path] | None:
    """Download the newest commit that verifies to `into/step-…`; None when nothing (whole) is committed.

    `on_damaged` receives each damaged checkpoint and what is wrong with it; the one before it is taken. Raises
    `StoreUnavailable` when the store cannot be reached and `LocalDiskError` when this machine takes no files:
    neither is a reason to start from nothing.
    """
    passed_over: set[str] = set()
    while True:
        found = ((c, problem) for c, problem in checkpoints.found() if c.name not in passed_over)
        checkpoint, problem = next(found, (None, None))
        if checkpoint is None:
            return None
        target, readable = into / step_name(checkpoint.step), problem is None
        problem = problem or fetch(checkpoints, checkpoint, target)
        if problem is None:
            return checkpoint, target
        shutil.rmtree(target, ignore_errors=True)
        if readable and not checkpoints.job.store.exists(f"{FOLDER}/{checkpoint.name}/{MANIFEST}"):
            continue  # not damaged: retention removed it meanwhile, so there are newer ones
        passed_over.add(checkpoint.name)
        if on_damaged:
            on_damaged(checkpoint, problem)


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


def download(checkpoints: Checkpoints, checkpoint: Checkpoint, target: Path) -> None:
    """Fetch a checkpoint's files into the folder `target`, which is made anew."""
    shutil.rmtree(target, ignore_errors=True)

    def bring(file: StoredFile) -> None:
        checkpoints.job.store.download(f"{FOLDER}/{checkpoint.name}/{file.name}", target / file.name)

    with ThreadPoolExecutor(PARALLEL_TRANSFERS, thread_name_prefix="download") as pool:
        list(pool.map(bring, checkpoint.files))
