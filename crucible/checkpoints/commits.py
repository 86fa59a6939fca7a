"""Commit, list and verify: the checkpoints of a job in the store.

A commit uploads a finished local folder file by file, then writes the manifest: names, sizes and sha256 of the files,
the step, and what the workload recorded of its state. Each attempt writes below names of its own, so two attempts can
never mix their files; which manifests count when an attempt was superseded is decided by the fence of
`crucible.jobs.job`.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from crucible.checkpoints.local_files import checkpoint_files, stamp, workload_state
from crucible.checkpoints.manifest import FOLDER, MANIFEST, Checkpoint, StoredFile, step_and_attempt
from crucible.contract import file_sha256, step_of
from crucible.errors import CheckpointError, LocalDiskError, ObjectMissing, RecordDamaged, StoreUnavailable
from crucible.jobs.job import Attempt, Job
from crucible.store.base import local_disk
from crucible.store.retry import Pause, no_wait, persist

PARALLEL_TRANSFERS = 4


class Checkpoints:
    """The checkpoints of one job."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def list(self) -> list[Checkpoint]:
        """Every commit that counts, newest first."""
        return [checkpoint for checkpoint, problem in self.found() if problem is None]

    def damaged(self) -> Sequence[tuple[Checkpoint, str]]:
        """Every commit that would count but for its manifest, newest first, with what is wrong."""
        return [(checkpoint, problem) for checkpoint, problem in self.found() if problem is not None]

    def commit(self, attempt: Attempt, folder: Path, *, pause: Pause = no_wait) -> Checkpoint:
        """Carry the finished local folder `step-…` to the store and make it count.

        A file whose transfer fails is tried again, with growing pauses, until `pause` says that waiting must end.

        Raises `FencedOut` when the attempt has been superseded, `StoreError` when the store failed to the end, and
        `CheckpointError` when the folder cannot become a checkpoint.
        """
        step = step_of(folder)
        if step is None:
            raise CheckpointError(f"{folder} is no checkpoint folder: its name must be step-<number>")
        persist(attempt.require_current, pause)
        paths = checkpoint_files(folder)
        if not paths:
            raise CheckpointError(f"{folder} holds no file")
        if folder / MANIFEST in paths:
            raise CheckpointError(f"{folder / MANIFEST}: this name is taken by Crucible; choose another")
        checkpoint = Checkpoint(
            job_id=self.job.job_id, attempt=attempt.number, step=step, files=[], state=workload_state(folder)
        )

        def carry(path: Path) -> StoredFile:
            try:
                before = stamp(path)
                stored = StoredFile(
                    name=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=file_sha256(path)
                )
            except FileNotFoundError as error:
                raise CheckpointError(f"{path} vanished before it was carried to the store") from error
            self._upload(attempt, path, f"{FOLDER}/{checkpoint.name}/{stored.name}", stored.size, pause)
            if stamp(path) != before:
                raise CheckpointError(
                    f"{path} changed while it was carried to the store; a workload must leave a checkpoint folder "
                    f"alone once it has its final name"
                )
            return stored

        with ThreadPoolExecutor(PARALLEL_TRANSFERS, thread_name_prefix="upload") as pool:
            checkpoint.files = list(pool.map(carry, paths))
        persist(attempt.require_current, pause)
        manifest = f"{FOLDER}/{checkpoint.name}/{MANIFEST}"
        persist(lambda: self.job.store.write_model(manifest, checkpoint), pause)
        persist(attempt.require_current, pause)
        return checkpoint

    def verify(self, checkpoint: Checkpoint, folder: Path | None = None) -> str | None:
        """What is wrong with a checkpoint, or None: sizes in the store, or sha256 of the copy in `folder`."""
        for file in checkpoint.files:
            if folder is None:
                try:
                    size = self.job.store.size(f"{FOLDER}/{checkpoint.name}/{file.name}")
                except ObjectMissing:
                    return f"{file.name} is missing"
                if size != file.size:
                    return f"{file.name} has {size} bytes instead of {file.size}"
                continue
            with local_disk(folder / file.name):
                found = file_sha256(folder / file.name)
            if found != file.sha256:
                return f"{file.name} has sha256 {found[:12]}… instead of {file.sha256[:12]}…"
        return None

    def found(self) -> Sequence[tuple[Checkpoint, str | None]]:
        """Every commit that counts, newest first, each with what is wrong with its manifest, if anything is."""
        newest_allowed = self.newest_allowed()
        found = []
        for name in self.job.store.folders(FOLDER):
            step, attempt = step_and_attempt(name)
            if step is None or attempt is None or step > newest_allowed(attempt):
                continue
            with suppress(ObjectMissing):
                try:
                    checkpoint = self.job.store.read_model(f"{FOLDER}/{name}/{MANIFEST}", Checkpoint, Checkpoint.fix)
                    problem = None if checkpoint.name == name else f"{MANIFEST} is that of {checkpoint.name}"
                except RecordDamaged as error:
                    problem = str(error)
                if problem is not None:
                    checkpoint = Checkpoint(job_id=self.job.job_id, attempt=attempt, step=step, files=[])
                found.append((checkpoint, problem))
        return sorted(found, key=lambda entry: (entry[0].step, entry[0].attempt), reverse=True)

    def delete(self, name: str) -> None:
        """Remove a checkpoint, its manifest first: no half-deleted one is ever found."""
        self.job.store.delete(f"{FOLDER}/{name}/{MANIFEST}")
        for info in self.job.store.list(f"{FOLDER}/{name}"):
            self.job.store.delete(info.key)

    def newest_allowed(self) -> Callable[[int], float]:
        """For each attempt, the highest step whose commits count: what every later attempt had taken over."""
        starts = [(attempt.number, start.step) for attempt in self.job.attempts() if (start := attempt.read_start())]

        def newest(attempt: int) -> float:
            return min((step for number, step in starts if number > attempt), default=math.inf)

        return newest

    def _upload(self, attempt: Attempt, path: Path, key: str, size: int, pause: Pause) -> None:
        def send() -> None:
            stamp(path)  # a file that is gone is no store that does not answer
            try:
                self.job.store.upload(path, key)
                stored = self.job.store.size(key)
            except ObjectMissing as error:
                attempt.require_current()  # it was cleared away, and only a successor does that
                raise StoreUnavailable(f"store {self.job.store.uri}: {key} vanished after its upload") from error
            except LocalDiskError as error:
                raise CheckpointError(f"{path} cannot be carried to the store: {error}") from error
            if stored != size:
                raise StoreUnavailable(f"store {self.job.store.uri}: {key} arrived with {stored} of {size} bytes")

        persist(send, pause)
