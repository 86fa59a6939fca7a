"""Checkpoints in the store: commit, list, verify, restore, retain.

    jobs/<job>/checkpoints/step-00001200.attempt-0002/<files>
                                                      manifest.json   written last: without it there is no checkpoint

A commit uploads a finished local folder file by file, then writes the manifest: names, sizes and sha256 of the files,
the step, and what the workload said about its state. Restore takes the newest manifest whose every file verifies.
Each attempt writes below names of its own, so two attempts can never mix their files; which manifests count when an
attempt was superseded is decided by the fence of `crucible.jobs`.
"""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field

from crucible.errors import CheckpointError, ObjectMissing, StoreError
from crucible.jobs import Attempt, Job, Record, now

PARALLEL_TRANSFERS = 4
FOLDER = "checkpoints"

Pause = Callable[[float], bool]
"""Waits that many seconds; True when waiting must end (the machine is going)."""


class StoredFile(Record):
    """One file of a checkpoint."""

    name: str
    size: int
    sha256: str


class Checkpoint(Record):
    """The manifest: everything known of one commit."""

    job_id: str
    attempt: int
    step: int
    files: list[StoredFile]
    state: dict[str, Any] = Field(default_factory=dict)
    """What the workload wrote into `state.json`: metrics, config digest, environment."""
    committed_at: datetime = Field(default_factory=now)

    @property
    def name(self) -> str:
        return f"step-{self.step:08d}.attempt-{self.attempt:04d}"

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def val_loss(self) -> float | None:
        """Validation loss in nats per token at this step, when the workload reported one."""
        value = self.state.get("val_loss")
        return float(value) if value is not None else None


def step_of(folder: Path) -> int | None:
    """The step in a local checkpoint folder's name `step-00001200`; None for any other name."""
    prefix, _, digits = folder.name.partition("-")
    return int(digits) if prefix == "step" and digits.isdecimal() else None


def finished_folders(parent: Path) -> list[Path]:
    """The whole checkpoint folders below `parent`, lowest step first; `.partial` ones are not whole."""
    with suppress(FileNotFoundError):
        return sorted((p for p in parent.iterdir() if p.is_dir() and step_of(p) is not None), key=lambda p: p.name)
    return []


class Checkpoints:
    """The checkpoints of one job."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def list(self) -> list[Checkpoint]:
        """Every commit that counts, newest first."""
        newest_allowed = self._newest_allowed()
        manifests = []
        for name in self.job.store.folders(FOLDER):
            with suppress(ObjectMissing):
                manifests.append(Checkpoint.model_validate(self.job.store.read_json(f"{FOLDER}/{name}/manifest.json")))
        counted = [c for c in manifests if c.step <= newest_allowed(c.attempt)]
        return sorted(counted, key=lambda c: (c.step, c.attempt), reverse=True)

    def commit(
        self,
        attempt: Attempt,
        folder: Path,
        *,
        pause: Pause | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> Checkpoint:
        """Carry the finished local folder `step-…` to the store and make it count.

        A file whose transfer fails is tried again, with growing pauses, until `pause` says that waiting must end;
        files that are already there are not sent again. `progress` hears the bytes carried so far.

        Raises `FencedOut` when the attempt has been superseded, `StoreError` when the store failed to the end.
        """
        step = step_of(folder)
        if step is None:
            raise CheckpointError(f"{folder} is no checkpoint folder: its name must be step-<number>")
        wait = pause or _no_wait
        _persist(attempt.require_current, wait)
        state_file = folder / "state.json"
        state = json.loads(state_file.read_text()) if state_file.exists() else {}
        checkpoint = Checkpoint(job_id=self.job.job_id, attempt=attempt.number, step=step, files=[], state=state)
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
        carried = 0

        def carry(path: Path) -> StoredFile:
            nonlocal carried
            stored = StoredFile(
                name=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=file_sha256(path)
            )
            self._upload(path, f"{FOLDER}/{checkpoint.name}/{stored.name}", stored.size, wait)
            carried += stored.size
            if progress:
                progress(carried)
            return stored

        with ThreadPoolExecutor(PARALLEL_TRANSFERS, thread_name_prefix="upload") as pool:
            checkpoint.files = list(pool.map(carry, paths))
        _persist(attempt.require_current, wait)
        manifest = f"{FOLDER}/{checkpoint.name}/manifest.json"
        _persist(lambda: self.job.store.write_json(manifest, checkpoint.model_dump(mode="json")), wait)
        _persist(attempt.require_current, wait)
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
            elif (found := file_sha256(folder / file.name)) != file.sha256:
                return f"{file.name} has sha256 {found[:12]}… instead of {file.sha256[:12]}…"
        return None

    def restore(
        self, into: Path, *, on_damaged: Callable[[Checkpoint, str], None] | None = None
    ) -> tuple[Checkpoint, Path] | None:
        """Download the newest commit that verifies to `into/step-…`; None when nothing (whole) is committed.

        A damaged checkpoint is told to `on_damaged` with what is wrong, and the one before it is taken. Raises
        `StoreError` when the store cannot be reached: that is no reason to start from nothing.
        """
        for checkpoint in self.list():
            problem = self.verify(checkpoint)
            target = into / f"step-{checkpoint.step:08d}"
            if problem is None:
                self.download(checkpoint, target)
                problem = self.verify(checkpoint, target)
            if problem is None:
                return checkpoint, target
            shutil.rmtree(target, ignore_errors=True)
            if on_damaged:
                on_damaged(checkpoint, problem)
        return None

    def download(self, checkpoint: Checkpoint, target: Path) -> None:
        """Fetch a checkpoint's files into the folder `target`, which is made anew."""
        shutil.rmtree(target, ignore_errors=True)

        def fetch(file: StoredFile) -> None:
            self.job.store.download(f"{FOLDER}/{checkpoint.name}/{file.name}", target / file.name)

        with ThreadPoolExecutor(PARALLEL_TRANSFERS, thread_name_prefix="download") as pool:
            list(pool.map(fetch, checkpoint.files))

    def retain(self, *, keep_last: int = 3, named: Iterable[int] = ()) -> Sequence[Checkpoint]:
        """Delete what need not be kept; returns what was deleted.

        Kept are the newest `keep_last` that count, the best by validation loss, and every step a report names. The
        manifest goes first, so that no half-deleted checkpoint is ever found.
        """
        checkpoints = self.list()
        kept = {c.name for c in checkpoints[:keep_last]}
        kept |= {c.name for c in checkpoints if c.step in set(named)}
        scored = [c for c in checkpoints if c.val_loss is not None]
        if scored:
            kept.add(min(scored, key=lambda c: (c.val_loss, -c.step)).name)
        deleted = [c for c in checkpoints if c.name not in kept]
        for checkpoint in deleted:
            self._delete(checkpoint.name)
        self._sweep({c.name for c in checkpoints})
        return deleted

    def _sweep(self, counted: set[str]) -> None:
        """Remove what superseded attempts left: uploads without a manifest, and commits that do not count."""
        started = [attempt.number for attempt in self.job.attempts() if attempt.start is not None]
        for name in self.job.store.folders(FOLDER):
            attempt = int(name.rpartition("-")[2])
            if name not in counted and started and attempt < max(started):
                self._delete(name)

    def _delete(self, name: str) -> None:
        self.job.store.delete(f"{FOLDER}/{name}/manifest.json")
        for info in self.job.store.list(f"{FOLDER}/{name}"):
            self.job.store.delete(info.key)

    def _newest_allowed(self) -> Callable[[int], float]:
        """For each attempt, the highest step whose commits count: what every later attempt had taken over."""
        starts = [(attempt.number, start.step) for attempt in self.job.attempts() if (start := attempt.start)]

        def newest(attempt: int) -> float:
            return min((step for number, step in starts if number > attempt), default=float("inf"))

        return newest

    def _upload(self, path: Path, key: str, size: int, pause: Pause) -> None:
        def send() -> None:
            if self.job.store.exists(key) and self.job.store.size(key) == size:
                return
            self.job.store.upload(path, key)
            stored = self.job.store.size(key)
            if stored != size:
                raise StoreError(f"store {self.job.store.uri}: {key} arrived with {stored} of {size} bytes")

        _persist(send, pause)


def _persist(action: Callable[[], None], pause: Pause) -> None:
    """Do it, again and again with growing pauses while the store fails, until `pause` says that time is up."""
    delay = 0.5
    while True:
        try:
            return action()
        except StoreError:
            if pause(delay):
                raise
            delay = min(delay * 2, 10.0)


def _no_wait(_seconds: float) -> bool:
    return True


def wait_at_most(seconds: float) -> Pause:
    """A `Pause` that gives up once `seconds` have passed since now."""
    deadline = time.monotonic() + seconds

    def pause(delay: float) -> bool:
        if time.monotonic() + delay > deadline:
            return True
        time.sleep(delay)
        return False

    return pause


def file_sha256(path: Path) -> str:
    """Hex sha256 of a file's contents."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
