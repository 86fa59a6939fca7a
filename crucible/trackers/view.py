"""One TensorBoard over several jobs: their event files in a local folder, kept up to date while it is open."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path

from crucible.errors import ConfigError, ObjectMissing, RecordDamaged, StoreError
from crucible.extras import how_to_install
from crucible.jobs.job import Job
from crucible.jobs.metrics import Metrics
from crucible.store import FileStore, Store
from crucible.trackers.backends.tensorboard import TensorBoardRun
from crucible.trackers.points import Progress, final_rows

REFRESH_SECONDS = 5.0


def newest_jobs(store: Store, most: int) -> list[Job]:
    """The newest jobs, newest first; one whose records are damaged hides no other."""
    created: list[tuple[datetime, Job]] = []
    for name in Job.ids(store):
        job = Job(store, name)
        with suppress(RecordDamaged, ObjectMissing):
            created.append((job.read_spec().created_at, job))
    return [job for _, job in sorted(created, key=lambda entry: entry[0], reverse=True)[:most]]


class EventFolder:
    """The event files of jobs, a folder for each, made from their records: no job needs to have had a tracker."""

    def __init__(self, folder: Path, jobs: Sequence[Job]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self._jobs = [(job, Metrics(job), TensorBoardRun(FileStore(folder / job.job_id))) for job in jobs]
        self._sent = dict.fromkeys((job.job_id for job, _, _ in self._jobs), -1)

    def refresh(self) -> int:
        """Add what the jobs have reported since; returns how many steps. A store that is away is passed over."""
        added = 0
        for job, metrics, run in self._jobs:
            try:
                rows = final_rows(metrics.rows(), self._sent[job.job_id], Progress(over=True), now=0.0)
            except StoreError:
                continue
            if rows:
                run.send(rows)
                self._sent[job.job_id] = int(rows[-1]["step"])
                added += len(rows)
        return added


def show(folder: Path, jobs: Sequence[Job], host: str, port: int, started: Callable[[int], None]) -> int:
    """Run TensorBoard over the jobs until it ends or Ctrl-C; returns its exit code.

    Raises `ConfigError` where TensorBoard is not installed.
    """
    if find_spec("tensorboard") is None:
        raise ConfigError(how_to_install(ModuleNotFoundError(name="tensorboard")) or "tensorboard is not installed")
    events = EventFolder(folder, jobs)
    started(events.refresh())
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(folder), "--host", host, "--port", str(port)]
    over = threading.Event()

    def refresh() -> None:
        while not over.wait(REFRESH_SECONDS):
            events.refresh()

    threading.Thread(target=refresh, name="events", daemon=True).start()
    with subprocess.Popen([*command, "--reload_interval", str(REFRESH_SECONDS)]) as process:
        try:
            return process.wait()
        finally:
            over.set()
            process.terminate()
