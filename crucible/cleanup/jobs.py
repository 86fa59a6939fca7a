"""Jobs that ended long ago: their best model, records, metrics and model cards stay, other checkpoints and logs go.

Never touched: a job that runs or may be about to, whose sweep runs, or whose records cannot be read; checkpoints that a
model card or an evaluation names, and the newest one of a job that can still go on or that others build on.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import FOLDER, MANIFEST, MODELS, Checkpoint, best_checkpoint, step_and_attempt
from crucible.cleanup.removal import Kind, Removal
from crucible.contract import step_name
from crucible.errors import ConfigError, ObjectMissing, RecordDamaged
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec
from crucible.jobs.status import JobState, JobStatus, status_of
from crucible.reports.evaluation import read_evaluation
from crucible.store import Store
from crucible.supervision.heartbeat import supervisor_heartbeats


@dataclass
class OldJobs:
    """Finds what may go of the jobs of a store that ended before `before`."""

    store: Store
    before: datetime
    left_alone: list[str] = field(default_factory=list)
    """Jobs whose records cannot be read, and why."""

    def find(self) -> Iterator[Removal]:
        """Job by job. Raises what the store raises."""
        specs = dict(self._read_specs())
        built_on = {spec.prepared_by for spec in specs.values()} | {spec.evaluates for spec in specs.values()}
        working = self._working()
        for job_id, spec in specs.items():
            job = Job(self.store, job_id)
            try:
                status = self._ended(job, working)
                if status is not None:
                    yield from self._of_job(job, spec, status, job_id in built_on)
            except (RecordDamaged, ObjectMissing, ConfigError) as error:
                self.left_alone.append(f"{job_id}: {error}")

    def _read_specs(self) -> Iterator[tuple[str, JobSpec]]:
        for job_id in Job.ids(self.store):
            try:
                yield job_id, Job(self.store, job_id).read_spec()
            except (RecordDamaged, ObjectMissing) as error:
                self.left_alone.append(f"{job_id}: {error}")

    def _working(self) -> set[str]:
        """The jobs and sweeps that are supervised now."""
        return {record.subject for record in supervisor_heartbeats(self.store)}

    def _ended(self, job: Job, working: set[str] | None = None) -> JobStatus | None:
        """The job's status if it ended long enough ago and nobody works on it; else None."""
        status = status_of(job)
        if status is None or status.state is JobState.RUNNING or status.at >= self.before:
            return None
        working = self._working() if working is None else working
        if job.job_id in working or job.job_id.rpartition("-")[0] in working:  # itself, or the sweep it is a trial of
            return None
        attempts = job.attempts()
        if attempts and attempts[-1].read_outcome() is None:
            return None
        return status

    def _of_job(self, job: Job, spec: JobSpec, status: JobStatus, built_on: bool) -> Iterator[Removal]:
        days = f"{job.job_id} ended on {status.at:%Y-%m-%d}"
        checkpoints = Checkpoints(job)
        found = checkpoints.found()
        whole = [checkpoint for checkpoint, problem in found if problem is None]
        kept = _needed(job, spec, status, whole, built_on) | {c.name for c, problem in found if problem is not None}
        sizes = _sizes(job)
        for name in job.store.folders(FOLDER):
            if name in kept or step_and_attempt(name) == (None, None):
                continue
            committed = job.store.exists(f"{FOLDER}/{name}/{MANIFEST}")
            why = f"{days}; its best model stays" if committed else f"{days}; this upload was never finished"
            yield Removal(Kind.CHECKPOINTS, f"{job.job_id} {name}", sizes.get(name, 0), why, self._deletion(job, name))
        logs = [info for attempt in job.attempts() for info in job.store.list(f"attempts/{attempt.number:04d}/output")]
        if logs:

            def remove_logs() -> bool:
                if self._ended(job) is None:
                    return False
                for info in logs:
                    job.store.delete(info.key)
                return True

            size = sum(info.size for info in logs)
            yield Removal(Kind.LOGS, f"{job.job_id} logs", size, days, remove_logs)

    def _deletion(self, job: Job, name: str) -> Callable[[], bool]:
        def remove() -> bool:
            if self._ended(job) is None:
                return False
            Checkpoints(job).delete(name)
            return True

        return remove


def _needed(job: Job, spec: JobSpec, status: JobStatus, whole: list[Checkpoint], built_on: bool) -> set[str]:
    """The names of the checkpoints that stay."""
    if not whole:
        return set()
    best = best_checkpoint(whole)
    evaluation = read_evaluation(job)
    named = set(job.store.folders(MODELS))
    if evaluation is not None and isinstance(evaluation.get("step"), int):
        named.add(step_name(evaluation["step"]))
    kept = {checkpoint.name for checkpoint in whole if step_name(checkpoint.step) in named}
    finished_model = status.state is JobState.COMPLETED and spec.config is not None
    if best is None or built_on or not finished_model:
        kept.add(whole[0].name)  # to go on from, or with a script's outputs
    return kept | ({best.name} if best is not None else set())


def _sizes(job: Job) -> dict[str, int]:
    """Bytes of each checkpoint's folder."""
    sizes: dict[str, int] = {}
    for info in job.store.list(FOLDER):
        name = info.key.removeprefix(f"{FOLDER}/").split("/", 1)[0]
        sizes[name] = sizes.get(name, 0) + info.size
    return sizes
