"""One file of a checkpoint or a model, to give to others: behind a link that expires, or on this machine's disk."""

from __future__ import annotations

import shutil
import tarfile
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import FOLDER, MANIFEST, MODELS, Checkpoint
from crucible.checkpoints.restore import fetch_chosen
from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.records import now
from crucible.store.base import local_disk

SHARED = "shared"
"""Where packed files lie in a store that makes links."""


@dataclass(frozen=True)
class Shared:
    """What was packed, and how others get it."""

    name: str
    where: str
    """The link, or the file's path."""
    bytes: int
    expires_at: datetime | None = None
    """None for a file on disk."""


def share_checkpoint(job: Job, checkpoint: Checkpoint, expires: timedelta, folder: Path) -> Shared:
    """Pack a checkpoint, its manifest included.

    Raises `CheckpointError` when it is damaged, `ConfigError` for a time that the store cannot promise.
    """

    def place(target: Path) -> None:
        fetch_chosen(Checkpoints(job), checkpoint, target)
        job.store.download(f"{FOLDER}/{checkpoint.name}/{MANIFEST}", target / MANIFEST)

    return _share(job, f"{job.job_id}-{checkpoint.name}", place, expires, folder)


def share_model(job: Job, step: str, expires: timedelta, folder: Path) -> Shared:
    """Pack an evaluated model with its card; `step`: the name of its folder, such as `step-00001000`."""
    prefix = f"{MODELS}/{step}"
    objects = job.store.list(prefix)
    if not objects:
        raise ConfigError(f"job: {job.job_id} has no model of {step}; evaluate it first")

    def place(target: Path) -> None:
        for info in objects:
            job.store.download(info.key, target / info.key.removeprefix(f"{prefix}/"))

    return _share(job, f"{job.job_id}-{step}-model", place, expires, folder)


def _share(job: Job, name: str, place: Callable[[Path], None], expires: timedelta, folder: Path) -> Shared:
    file, key = f"{name}.tar", f"{SHARED}/{name}.tar"
    until = now() + expires
    job.root.link(key, expires.total_seconds())  # refuses what it cannot promise before anything is packed
    with tempfile.TemporaryDirectory(prefix="crucible-share-") as scratch:
        place(Path(scratch, name))
        packed = Path(scratch, file)
        with local_disk(packed), tarfile.open(packed, "w") as archive:
            archive.add(Path(scratch, name), arcname=name)
        size = packed.stat().st_size
        if job.root.link(key, expires.total_seconds()) is None:
            with local_disk(folder):
                folder.mkdir(parents=True, exist_ok=True)
                shutil.move(packed, folder / file)
            return Shared(name, str(folder / file), size)
        job.root.upload(packed, key)
    link = job.root.link(key, expires.total_seconds())
    assert link is not None
    return Shared(name, link, size, until)
