"""Carry what a job, or every trial of a sweep, reports to one tracker."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import datetime

from crucible.checkpoints.manifest import MODELS
from crucible.contract import step_name
from crucible.errors import ObjectMissing, RecordDamaged, StoreError
from crucible.formatting import duration, without_credentials
from crucible.jobs.job import Job
from crucible.jobs.metrics import Metrics
from crucible.jobs.status import JobStatus, status_of
from crucible.trackers.backends import open_run
from crucible.trackers.backends.base import RunEnd, RunRequest, TrackedRun
from crucible.trackers.config import TrackerConfig
from crucible.trackers.points import final_rows, read_progress
from crucible.trackers.records import TrackerRecord, read_record, write_record

BATCH_ROWS = 500
FIRST_DELAY_SECONDS, LONGEST_DELAY_SECONDS = 10.0, 300.0
"""Before a tracker that failed is tried again."""
CPU_SHARE = 0.02
"""Of one core, at most: a long history takes its time, and the job may train on the same machine."""
SLOW_SECONDS = 60.0
"""A tracker that takes longer is reported."""

Report = Callable[[str], None]
"""Receives one log line."""
MakeRun = Callable[[RunRequest], TrackedRun]


class JobTracker:
    """Keeps one tracker's run of one job up to date."""

    def __init__(self, job: Job, config: TrackerConfig, report: Report, make_run: MakeRun = open_run) -> None:
        self.job, self._config, self._report, self._make_run = job, config, report, make_run
        self._metrics = Metrics(job)
        self._record: TrackerRecord | None = None
        self._run: TrackedRun | None = None
        self._settled: tuple[datetime, bool] | None = None

    def update(self, finish: bool, last: bool = False) -> None:
        """Send what is final by now.

        `finish`: a job that has ended is finished at the tracker, too; it may be continued all the same. `last`: a
        finished one is looked at again, since it may have been evaluated. Raises `StoreError`, and what the tracker
        raises.
        """
        status = status_of(self.job)
        if status is not None and (status.at, finish) == self._settled and not last:
            return  # nothing happens to it until somebody continues it
        record = self._read_record()
        progress = read_progress(self.job)
        history = self._metrics.rows()
        if final_rows(history, record.step, progress, time.time()):
            run = self._open(record)  # the tracker may have more steps than the record says, or have lost some
            rows = final_rows(history, record.step, progress, time.time())
            for first in range(0, len(rows), BATCH_ROWS):
                batch = rows[first : first + BATCH_ROWS]
                run.send(batch)
                record.step, record.finished = int(batch[-1]["step"]), False
                write_record(self.job, record)
        if not progress.over or status is None:
            return
        if finish and record.step >= 0:
            end = self._read_end(status)
            if not record.finished or record.model != end.model:
                self._open(record).finish(end)
                self._run = None
                record.finished, record.model = True, end.model
                write_record(self.job, record)
        self._settled = status.at, finish

    def close(self) -> None:
        """Leave the run to the next process."""
        if self._run is not None:
            run, self._run = self._run, None
            run.close()

    def _read_record(self) -> TrackerRecord:
        if self._record is None:
            known = read_record(self.job, self._config.name)
            self._record = known or TrackerRecord(name=self._config.name, kind=self._config.kind)
        return self._record

    def _open(self, record: TrackerRecord) -> TrackedRun:
        if self._run is None:
            self._run = self._make_run(RunRequest(self.job, self.job.read_spec(), self._config, record.run_id))
            if self._run.newest_step is not None:
                record.step = self._run.newest_step
            if (record.url, record.run_id) != (self._run.url, self._run.run_id):
                record.url, record.run_id = self._run.url, self._run.run_id
                self._report(f"{self._config.name} shows {self.job.job_id}: {record.url or record.run_id}")
        return self._run

    def _read_end(self, status: JobStatus) -> RunEnd:
        figures = {"cost_usd": self.job.cost_usd(), "attempts": float(len(self.job.attempts()))}
        try:
            evaluation = self.job.store.read_json("evaluation.json")
            model = f"{MODELS}/{step_name(int(evaluation['step']))}"
        except (ObjectMissing, RecordDamaged, KeyError, TypeError, ValueError):
            model = ""  # not evaluated
        return RunEnd(status.state, status.reason, figures, model)


@dataclass
class Follower:
    """Keeps a tracker up to date for every job that `jobs` returns, until it is stopped.

    What goes wrong is reported once, and tried again with growing pauses; the jobs know nothing of it.
    """

    config: TrackerConfig
    jobs: Callable[[], Sequence[Job]]
    report: Report
    finish_at_once: bool = False
    """Finish a job as soon as it has ended, rather than when all is over: its evaluation is not waited for."""
    poll_seconds: float = 5.0
    make_run: MakeRun = open_run
    slow_seconds: float = SLOW_SECONDS
    _trackers: dict[str, JobTracker] = field(default_factory=dict, init=False)
    _failed: str = field(default="", init=False)
    _delay: float = field(default=0.0, init=False)

    def follow(self, over: threading.Event) -> bool:
        """Until `over` is set, and then once more; returns whether the tracker has everything."""
        busy = 0.0
        while not over.wait(max(self.poll_seconds, self._delay, busy / CPU_SHARE)):
            began = time.thread_time()
            self.look()
            busy = time.thread_time() - began
        return self.once()

    def once(self) -> bool:
        """Send everything that is final now, and leave; returns whether the tracker has it all."""
        complete = self.look(ending=True)
        for tracker in self._trackers.values():
            with self._reported("cannot be closed"):
                tracker.close()
        return complete

    def look(self, ending: bool = False) -> bool:
        """Send everything that is final now; whether all of it was sent."""
        try:
            for job in self.jobs():
                self._trackers.setdefault(job.job_id, JobTracker(job, self.config, self.report, self.make_run))
        except StoreError:
            return False  # reported by whoever reads or writes something that matters
        failures = 0
        for tracker in list(self._trackers.values()):
            with self._watched(), self._reported("does not take the metrics of " + tracker.job.job_id) as failed:
                try:
                    tracker.update(ending or self.finish_at_once, last=ending)
                except StoreError:
                    failures += 1
                    continue
            failures += bool(failed)
            if failed and not ending:
                break  # the tracker is away for the others, too
        if not failures:
            if self._failed:
                self.report(f"{self.config.name} answers again and has everything up to now")
            self._failed, self._delay = "", 0.0
        return not failures

    @contextmanager
    def _reported(self, what: str) -> Iterator[list[str]]:
        failed: list[str] = []
        try:
            yield failed
        except Exception as error:  # noqa: BLE001 - whatever a tracker's library raises, the training goes on
            message = without_credentials(" ".join(f"{type(error).__name__}: {error}".split()))[:300]
            failed.append(message)
            self._delay = min(LONGEST_DELAY_SECONDS, max(FIRST_DELAY_SECONDS, 2 * self._delay))
            if not self._failed:
                self.report(f"{self.config.name} {what}: {message}; the training goes on, and this is tried again")
            self._failed = message

    @contextmanager
    def _watched(self) -> Iterator[None]:
        """Report a tracker that hangs while it does."""

        def warn() -> None:
            if not self._failed:
                self._failed = "no answer"
                self.report(
                    f"{self.config.name} has not answered for {duration(self.slow_seconds)}; the training goes on"
                )

        timer = threading.Timer(self.slow_seconds, warn)
        timer.daemon = True
        timer.start()
        try:
            yield
        finally:
            timer.cancel()
