"""A job's records at one moment, each read once: what summary and report are made of."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from crucible.errors import RecordDamaged
from crucible.estimate.history import PlannedCost, read_plan
from crucible.jobs.job import Job
from crucible.jobs.records import Claim, Heartbeat, JobSpec, Launch, Limits, Outcome, Start
from crucible.jobs.stage_records import StageRun
from crucible.jobs.status import JobStatus, status_of

R = TypeVar("R")


@dataclass(frozen=True)
class AttemptRecords:
    """The records of one attempt at one moment; None where there is none, or where it is damaged."""

    number: int
    launch: Launch | None = None
    claim: Claim | None = None
    start: Start | None = None
    heartbeat: Heartbeat | None = None
    outcome: Outcome | None = None

    @property
    def committed_step(self) -> int:
        start = self.start.step if self.start else 0
        return max(start, *(record.committed_step if record else 0 for record in self._progress))

    @property
    def reached_step(self) -> int | None:
        """The last step it trained; None before it had anything to start from."""
        if self.start is None:
            return None
        return max(self.committed_step, *(r.step if r else 0 for r in self._progress))

    @property
    def _progress(self) -> tuple[Outcome | Heartbeat | None, ...]:
        """The agent's own outcome says all; a supervisor's knows no more than the last heartbeat."""
        told = self.outcome is not None and self.outcome.decided_by == "agent"
        return (self.outcome, None if told else self.heartbeat)


@dataclass(frozen=True)
class JobRecords:
    """A job's records at one moment."""

    job_id: str
    """The name of its folder, by which every command finds it."""
    spec: JobSpec
    limits: Limits
    status: JobStatus | None = None
    planned: PlannedCost | None = None
    attempts: tuple[AttemptRecords, ...] = ()
    stages: tuple[StageRun, ...] = ()
    """Around the training, each with what it has cost; one that is a job of its own with that job's costs."""
    warnings: tuple[str, ...] = ()
    """Damaged records that are left out."""


def read_records(job: Job) -> JobRecords:
    """Read everything that a summary is made of.

    Raises:
        RecordDamaged, ObjectMissing: there is no readable `job.json`; any other damaged record is left out.
    """
    warnings: list[str] = []

    def read(record: Callable[[], R]) -> R | None:
        try:
            return record()
        except RecordDamaged as error:
            warnings.append(str(error))
            return None

    attempts = tuple(
        AttemptRecords(
            attempt.number,
            launch=read(attempt.read_launch),
            claim=read(attempt.read_claim),
            start=read(attempt.read_start),
            heartbeat=read(attempt.read_heartbeat),
            outcome=read(attempt.read_outcome),
        )
        for attempt in job.attempts()
    )
    return JobRecords(
        job_id=job.job_id,
        spec=job.read_spec(),
        limits=read(job.read_limits) or Limits(),
        status=read(lambda: status_of(job)),
        planned=read(lambda: read_plan(job)),
        attempts=attempts,
        stages=tuple(_with_costs(job, run, read) for run in read(job.read_stages) or ()),
        warnings=tuple(warnings),
    )


class _Reader(Protocol):
    """Reads a record; None for a damaged one."""

    def __call__(self, record: Callable[[], R]) -> R | None: ...


def _with_costs(job: Job, run: StageRun, read: _Reader) -> StageRun:
    """The stage as it is, or with the sums and the last machine of the job that it is."""
    if not run.job:
        return run
    attempts = Job(job.root, run.job).attempts()
    records = [record for a in attempts if (record := read(a.read_outcome) or read(a.read_heartbeat))]
    if not records:
        return run
    launch, claim, outcome = (
        read(attempts[-1].read_launch),
        read(attempts[-1].read_claim),
        read(attempts[-1].read_outcome),
    )
    return run.model_copy(
        update={
            "pool": launch.pool if launch else run.pool,
            "instance": (claim.instance if claim else "") or (launch.instance if launch else ""),
            "usd_per_hour": records[-1].usd_per_hour or (launch.usd_per_hour if launch else 0.0),
            "seconds": sum(record.seconds for record in records),
            "cost_usd": sum(record.cost_usd for record in records),
            "end": outcome.label if outcome else "",
        }
    )
