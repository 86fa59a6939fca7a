"""The state of a job and its attempts as plain values, for the report, the command line and `--json`."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crucible.billing.costs import attempt_usd_per_hour
from crucible.billing.machines import machines_of, shown_machines
from crucible.estimate.history import PlannedCost
from crucible.jobs.job import Job
from crucible.jobs.metrics import Metrics, Row
from crucible.jobs.records import EndReason, JobSpec, Limits
from crucible.jobs.stage_records import StageRun
from crucible.jobs.status import JobState
from crucible.reports.records import AttemptRecords, JobRecords, read_records
from crucible.supervision.retry_policy import STARTED_AGAIN

_NEEDS_A_PERSON = (EndReason.BUDGET, EndReason.CANCELLED, EndReason.FAILED, EndReason.PAUSED, EndReason.COMPLETED)
"""After these an attempt follows only if a person (or a sweep) continues the job."""
RATE_ROWS = 50
"""How many of the latest rows the time left is estimated from: it should follow a machine that gets slower."""


@dataclass(frozen=True)
class AttemptSummary:
    """One attempt; None where something is not (yet) known."""

    number: int
    pool: str
    instance: str
    launched_because: str
    end_reason: EndReason | None
    """None while it runs."""
    end: str
    """How it ended, or what it is doing, as a message."""
    message: str
    from_step: int | None
    to_step: int | None
    steps_lost: int
    """Steps it had trained and that were not in the store when it ended; a later attempt trains them again."""
    recovery_seconds: float | None
    """From the end of the attempt before (its last sign of life, if it just vanished) to this one's first new step."""
    seconds: float
    usd_per_hour: float
    cost_usd: float
    notices: tuple[str, ...]
    saving: dict[str, float]
    mtbf_seconds: float | None
    price_remark: str = ""
    """How the machine and its price differ from the plan."""
    nodes: int = 1
    machines: tuple[str, ...] = ()
    """Of each node, the first one's first."""

    @property
    def shown_machines(self) -> str:
        """All of them, as people read them; empty where none is known."""
        return shown_machines(self.machines)


@dataclass(frozen=True)
class JobSummary:
    """One job."""

    job_id: str
    state: JobState | None
    """None before a supervisor took it up."""
    reason: str
    step: int
    total_steps: int | None
    committed_step: int
    train_loss: float | None
    val_loss: float | None
    seconds_left: float | None
    """Of training, for a running job whose speed is known."""
    seconds: float
    """What all attempts together took."""
    cost_usd: float
    """Of attempts and stages."""
    cost_left_usd: float | None
    """Likely, to the end of training: at the running attempt's speed and price, before that as estimated."""
    attempts: tuple[AttemptSummary, ...]
    limits: Limits
    spec: JobSpec
    stages: tuple[StageRun, ...] = ()
    """Preprocessing and evaluation on pools, with what they cost."""
    warnings: tuple[str, ...] = ()
    """Damaged records that are left out."""

    @property
    def running(self) -> bool:
        return self.state is JobState.RUNNING

    def as_json(self) -> dict[str, Any]:
        """The summary as JSON values."""
        values = asdict(self)
        values["limits"] = self.limits.model_dump(mode="json", exclude={"schema_version"})
        values["stages"] = [run.model_dump(mode="json", exclude={"schema_version"}) for run in self.stages]
        values["spec"] = self.spec.model_dump(mode="json", exclude={"schema_version"})
        return values


def summarise(job: Job, history: Sequence[Row] | None = None) -> JobSummary:
    """Read the job's records once and sum them up; a few requests for each attempt.

    The newest losses and the speed come from the job's `history` (`Metrics.rows`), or without it from the last piece
    of metrics alone, which is nearly as good.
    """
    records = read_records(job)
    return summary_of(records, _newest_rows(job, records) if history is None else history)


def summary_of(records: JobRecords, rows: Sequence[Row]) -> JobSummary:
    """The summary of a job's records and metrics; pure."""
    spec, status = records.spec, records.status
    places = range(len(records.attempts))
    attempts = tuple(_attempt_summary(records.attempts, place) for place in places)
    beats = [attempt.heartbeat for attempt in records.attempts if attempt.heartbeat]
    total = next((beat.total_steps for beat in reversed(beats) if beat.total_steps), spec.total_steps)
    step = next((attempt.to_step for attempt in reversed(attempts) if attempt.to_step is not None), 0)
    running = bool(attempts) and attempts[-1].end_reason is None
    seconds_left = _seconds_left(rows, step, total) if running and total is not None else None
    spent = sum(attempt.cost_usd for attempt in attempts) + sum(run.cost_usd for run in records.stages)
    return JobSummary(
        job_id=records.job_id,
        state=status.state if status else None,
        reason=status.reason if status and status.state not in (JobState.RUNNING, JobState.COMPLETED) else "",
        step=step,
        total_steps=total,
        committed_step=records.attempts[-1].committed_step if attempts else 0,
        train_loss=_newest(rows, "train_loss"),
        val_loss=_newest(rows, "val_loss"),
        seconds_left=seconds_left,
        seconds=sum(attempt.seconds for attempt in attempts),
        cost_usd=spent,
        cost_left_usd=_cost_left(records.planned, attempts[-1], seconds_left, spent) if running else None,
        attempts=attempts,
        limits=records.limits,
        spec=spec,
        stages=records.stages,
        warnings=records.warnings,
    )


def _attempt_summary(attempts: Sequence[AttemptRecords], place: int) -> AttemptSummary:
    own = attempts[place]
    launch, claim, outcome = own.launch, own.claim, own.outcome
    last = outcome or own.heartbeat
    machines = machines_of(launch, claim, last)
    return AttemptSummary(
        number=own.number,
        pool=launch.pool if launch else "",
        instance=machines[0],
        launched_because=launch.reason if launch else "",
        end_reason=outcome.end_reason if outcome else None,
        end=outcome.label if outcome else _activity(own),
        message=outcome.message if outcome else "",
        from_step=own.start.step if own.start else None,
        to_step=own.reached_step,
        steps_lost=_steps_lost(own, attempts[place + 1 :]),
        recovery_seconds=_recovery_seconds(own, attempts[place - 1]) if place else None,
        seconds=last.seconds if last else 0.0,
        usd_per_hour=attempt_usd_per_hour(launch, claim, last) if launch else 0.0,
        cost_usd=last.cost_usd if last else 0.0,
        notices=tuple(f"{n.source}: {n.reason}" for n in outcome.notifications) if outcome else (),
        saving=last.saving if last else {},
        mtbf_seconds=launch.mtbf_seconds if launch else None,
        price_remark=claim.price_remark if claim else "",
        nodes=len(machines),
        machines=tuple(machines),
    )


def _activity(attempt: AttemptRecords) -> str:
    if attempt.heartbeat:
        return f"running ({attempt.heartbeat.phase})"
    return "starting" if attempt.claim else "waiting for a machine"


def _steps_lost(attempt: AttemptRecords, later: Sequence[AttemptRecords]) -> int:
    """Compared with what the next attempt really started from, if there is one: a damaged commit counts as lost."""
    if attempt.outcome is None or attempt.reached_step is None:
        return 0
    kept = next((other.start.step for other in later if other.start), attempt.committed_step)
    return max(0, attempt.reached_step - kept)


def _recovery_seconds(attempt: AttemptRecords, before: AttemptRecords) -> float | None:
    """From the end of the attempt before to the first new step; waiting for a person to continue does not count."""
    if before.outcome is None or attempt.claim is None:
        return None
    gone = before.outcome.ended_at
    if before.outcome.decided_by != "agent" and before.heartbeat:
        gone = before.heartbeat.at
    launch = attempt.launch
    if launch and (STARTED_AGAIN in launch.reason or before.outcome.end_reason in _NEEDS_A_PERSON):
        gone = launch.decided_at
    for record in (attempt.outcome, attempt.heartbeat):
        if record and record.first_step_after_seconds is not None:
            back = attempt.claim.claimed_at.timestamp() + record.first_step_after_seconds
            return round(max(0.0, back - gone.timestamp()), 1)
    return None


def _cost_left(
    planned: PlannedCost | None, attempt: AttemptSummary, seconds_left: float | None, spent_usd: float
) -> float | None:
    if seconds_left is not None:
        return seconds_left / 3600 * attempt.usd_per_hour
    return max(0.0, planned.usd - spent_usd) if planned else None


def _newest_rows(job: Job, records: JobRecords) -> list[Row]:
    """The last heartbeat's metrics and the last piece sent: enough for the newest losses, in a few requests."""
    for attempt in reversed(records.attempts):
        if attempt.heartbeat is not None:
            beat = attempt.heartbeat
            rows: list[Row] = [{"step": beat.step, "attempt": attempt.number, **beat.metrics}]
            return rows + Metrics(job).of_attempt(job.attempt(attempt.number), pieces=1)
    return []


def _newest(rows: Sequence[Row], name: str) -> float | None:
    value = next((row[name] for row in reversed(rows) if name in row), None)
    return value if value is not None and math.isfinite(value) else None


def _seconds_left(rows: Sequence[Row], step: int, total: int) -> float | None:
    """Steps left at the speed of the running attempt's latest rows, evaluations and saves included."""
    timed = [row for row in rows if "time" in row]
    latest = [row for row in timed[-RATE_ROWS:] if row["attempt"] == timed[-1]["attempt"]]
    if len(latest) < 2:
        return None
    rate = (latest[-1]["time"] - latest[0]["time"]) / (latest[-1]["step"] - latest[0]["step"])
    return max(0.0, rate * (total - step))
