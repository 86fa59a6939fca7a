"""Checkpoints in the store: commit, list, verify, restore, retain.

    jobs/<job>/checkpoints/step-00001200.attempt-0002/<files>
                                                      manifest.json   written last: without it there is no checkpoint

A commit uploads a finished local folder file by file, then writes the manifest: names, sizes and sha256 of the files,
the step, and what the workload said about its state. Restore takes the newest manifest whose every file verifies.
Each attempt writes below names of its own, so two attempts can never mix their files; which manifests count when an
attempt was superseded is decided by the fence of `crucible.jobs.job`.
"""

from __future__ import annotations

import json
import math
import re
import shutil
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import Any

from pydantic import Field, field_validator

from crucible.contract import STATE_FILE, file_sha256, step_name, step_of
from crucible.errors import CheckpointError, LocalDiskError, ObjectMissing, RecordDamaged, StoreUnavailable
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import Record, now
from crucible.store.base import local_disk
from crucible.store.retry import Pause, no_wait, persist

PARALLEL_TRANSFERS = 4
FOLDER = "checkpoints"
MANIFEST = "manifest.json"
MODELS = "models"
"""Evaluated models and their cards lie in folders of this, named by their step."""


class StoredFile(Record):
    """One file of a checkpoint."""

    name: str
    size: int
    sha256: str

    @field_validator("name")
    @classmethod
    def _stays_below(cls, name: str) -> str:
        if not name or name.startswith("/") or ".." in name.split("/"):
            raise ValueError(f"{name!r} would lie outside the checkpoint's folder")
        return name


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
        return f"{step_name(self.step)}.attempt-{self.attempt:04d}"

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)

    @property
    def val_loss(self) -> float | None:
        """Validation loss in nats per token at this step, when the workload reported a finite one."""
        return self._loss("val_loss")

    @property
    def compared_loss(self) -> float | None:
        """The validation loss by which checkpoints are compared: the estimate over the same batches for each of them,
        where the workload tells it apart from a `val_loss` that it measured more thoroughly at the end."""
        estimate = self._loss("estimated_val_loss")
        return self.val_loss if estimate is None else estimate

    def _loss(self, name: str) -> float | None:
        value = self.state.get(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
            return None
        return float(value)


def best_checkpoint(checkpoints: Sequence[Checkpoint]) -> Checkpoint | None:
    """The one with the lowest validation loss, the later of two equals; None when none was scored."""
    scored = [(c.compared_loss, -c.step, c) for c in checkpoints if c.compared_loss is not None]
    return min(scored, key=lambda entry: entry[:2])[2] if scored else None


def _step_and_attempt(name: str) -> tuple[int, int] | tuple[None, None]:
    """What the name of a stored checkpoint's folder says; two None for a folder that is something else."""
    match = re.fullmatch(r"step-(\d{8,})\.attempt-(\d{4,})", name)
    return (int(match[1]), int(match[2])) if match else (None, None)


def _state(folder: Path) -> dict[str, Any]:
    """What the workload says of its state, in `state.json`; nothing if there is no such file."""
    try:
        state = json.loads((folder / STATE_FILE).read_text())
    except FileNotFoundError:
        return {}
    except ValueError as error:
        raise CheckpointError(f"{folder / STATE_FILE} is not valid JSON: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder / STATE_FILE} must hold a JSON object, not a {type(state).__name__}")
    return state


def _stamp(path: Path) -> tuple[int, int, int]:
    """Changes when the file does."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} vanished while it was carried to the store") from error
    return found.st_mtime_ns, found.st_size, found.st_ino


class Checkpoints:
    """The checkpoints of one job."""

    def __init__(self, job: Job) -> None:
        self.job = job

    def list(self) -> list[Checkpoint]:
        """Every commit that counts, newest first."""
        return [checkpoint for checkpoint, problem in self._found() if problem is None]

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

        Raises `FencedOut` when the attempt has been superseded, `StoreError` when the store failed to the end, and
        `CheckpointError` when the folder cannot become a checkpoint.
        """
        step = step_of(folder)
        if step is None:
            raise CheckpointError(f"{folder} is no checkpoint folder: its name must be step-<number>")
        wait = pause or no_wait
        persist(attempt.require_current, wait)
        paths = sorted(p for p in folder.rglob("*") if p.is_file())
        if not paths:
            raise CheckpointError(f"{folder} holds no file")
        if folder / MANIFEST in paths:
            raise CheckpointError(f"{folder / MANIFEST}: this name is taken by Crucible; choose another")
        checkpoint = Checkpoint(
            job_id=self.job.job_id, attempt=attempt.number, step=step, files=[], state=_state(folder)
        )
        carried = 0

        def carry(path: Path) -> StoredFile:
            nonlocal carried
            try:
                before = _stamp(path)
                stored = StoredFile(
                    name=path.relative_to(folder).as_posix(), size=path.stat().st_size, sha256=file_sha256(path)
                )
            except FileNotFoundError as error:
                raise CheckpointError(f"{path} vanished before it was carried to the store") from error
            self._upload(attempt, path, f"{FOLDER}/{checkpoint.name}/{stored.name}", stored.size, wait)
            if _stamp(path) != before:
                raise CheckpointError(
                    f"{path} changed while it was carried to the store; a workload must leave a checkpoint folder "
                    f"alone once it has its final name"
                )
            carried += stored.size
            if progress:
                progress(carried)
            return stored

        with ThreadPoolExecutor(PARALLEL_TRANSFERS, thread_name_prefix="upload") as pool:
            checkpoint.files = list(pool.map(carry, paths))
        persist(attempt.require_current, wait)
        manifest = f"{FOLDER}/{checkpoint.name}/{MANIFEST}"
        persist(lambda: self.job.store.write_model(manifest, checkpoint), wait)
        persist(attempt.require_current, wait)
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

    def restore(
        self, into: Path, *, on_damaged: Callable[[Checkpoint, str], None] | None = None
    ) -> tuple[Checkpoint, Path] | None:
        """Download the newest commit that verifies to `into/step-…`; None when nothing (whole) is committed.

        A damaged checkpoint is told to `on_damaged` with what is wrong, and the one before it is taken. Raises
        `StoreUnavailable` when the store cannot be reached and `LocalDiskError` when this machine takes no files:
        neither is a reason to start from nothing.
        """
        passed_over: set[str] = set()
        while True:
            found = ((c, problem) for c, problem in self._found() if c.name not in passed_over)
            checkpoint, problem = next(found, (None, None))
            if checkpoint is None:
                return None
            target = into / step_name(checkpoint.step)
            problem = problem or self._fetch_and_verify(checkpoint, target)
            if problem is None:
                return checkpoint, target
            shutil.rmtree(target, ignore_errors=True)
            if not self.job.store.exists(f"{FOLDER}/{checkpoint.name}/{MANIFEST}"):
                continue  # not damaged: retention removed it meanwhile, so there are newer ones
            passed_over.add(checkpoint.name)
            if on_damaged:
                on_damaged(checkpoint, problem)

    def _fetch_and_verify(self, checkpoint: Checkpoint, target: Path) -> str | None:
        problem = self.verify(checkpoint)
        if problem is not None:
            return problem
        try:
            self.download(checkpoint, target)
        except (ObjectMissing, RecordDamaged) as error:
            return str(error)
        return self.verify(checkpoint, target)

    def download(self, checkpoint: Checkpoint, target: Path) -> None:
        """Fetch a checkpoint's files into the folder `target`, which is made anew."""
        shutil.rmtree(target, ignore_errors=True)

        def fetch(file: StoredFile) -> None:
            self.job.store.download(f"{FOLDER}/{checkpoint.name}/{file.name}", target / file.name)

        with ThreadPoolExecutor(PARALLEL_TRANSFERS, thread_name_prefix="download") as pool:
            list(pool.map(fetch, checkpoint.files))

    def retain(self, *, keep_last: int = 3) -> Sequence[Checkpoint]:
        """Delete what need not be kept; returns what was deleted.

        Kept are the newest `keep_last` that count, the best by validation loss, and every step that has a model card.
        The manifest goes first, so that no half-deleted checkpoint is ever found.
        """
        checkpoints = self.list()
        kept = {c.name for c in checkpoints[:keep_last]}
        reported = set(self.job.store.folders(MODELS))
        kept |= {c.name for c in checkpoints if step_name(c.step) in reported}
        if (best := best_checkpoint(checkpoints)) is not None:
            kept.add(best.name)
        deleted = [c for c in checkpoints if c.name not in kept]
        for checkpoint in deleted:
            self._delete(checkpoint.name)
        self._sweep()
        return deleted

    def _sweep(self) -> None:
        """Remove what superseded attempts left: uploads without a manifest, and commits that do not count.

        Both are judged by start records alone, which only ever grow: what is dead once is dead for good, however long
        ago the caller, who may be superseded itself, has looked.
        """
        newest_allowed = self._newest_allowed()
        for name in self.job.store.folders(FOLDER):
            step, attempt = _step_and_attempt(name)
            if step is None or attempt is None or newest_allowed(attempt) == math.inf:
                continue
            if step > newest_allowed(attempt) or not self.job.store.exists(f"{FOLDER}/{name}/{MANIFEST}"):
                self._delete(name)

    def _found(self) -> Sequence[tuple[Checkpoint, str | None]]:
        """Every commit that counts, newest first, each with what is wrong with its manifest, if anything is."""
        newest_allowed = self._newest_allowed()
        found = []
        for name in self.job.store.folders(FOLDER):
            step, attempt = _step_and_attempt(name)
            if step is None or attempt is None or step > newest_allowed(attempt):
                continue
            with suppress(ObjectMissing):
                data = self.job.store.read(f"{FOLDER}/{name}/{MANIFEST}")
                try:
                    checkpoint = Checkpoint.model_validate(json.loads(data))
                    problem = None if checkpoint.name == name else f"{MANIFEST} is that of {checkpoint.name}"
                except ValueError as error:
                    problem = f"{MANIFEST} is damaged: {str(error).splitlines()[0]}"
                if problem is not None:
                    checkpoint = Checkpoint(job_id=self.job.job_id, attempt=attempt, step=step, files=[])
                found.append((checkpoint, problem))
        return sorted(found, key=lambda entry: (entry[0].step, entry[0].attempt), reverse=True)

    def _delete(self, name: str) -> None:
        self.job.store.delete(f"{FOLDER}/{name}/{MANIFEST}")
        for info in self.job.store.list(f"{FOLDER}/{name}"):
            self.job.store.delete(info.key)

    def _newest_allowed(self) -> Callable[[int], float]:
        """For each attempt, the highest step whose commits count: what every later attempt had taken over."""
        starts = [(attempt.number, start.step) for attempt in self.job.attempts() if (start := attempt.read_start())]

        def newest(attempt: int) -> float:
            return min((step for number, step in starts if number > attempt), default=math.inf)

        return newest

    def _upload(self, attempt: Attempt, path: Path, key: str, size: int, pause: Pause) -> None:
        def send() -> None:
            _stamp(path)  # a file that is gone is no store that does not answer
            try:
                if self.job.store.exists(key) and self.job.store.size(key) == size:
                    return
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
