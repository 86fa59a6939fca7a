"""The state of a job and its attempts as plain values, for the report, the command line and `--json`."""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from crucible.billing.costs import attempt_usd_per_hour
from crucible.estimate.history import read_plan
from crucible.jobs.job import Attempt, Job
from crucible.jobs.metrics import Metrics, Row
from crucible.jobs.records import EndReason, JobSpec, Launch, Limits, Outcome
from crucible.jobs.status import JobState, status_of
from crucible.supervision.retry_policy import STARTED_AGAIN

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
    cost_left_usd: float | None
    """Likely, to the end of training: at the running attempt's speed and price, before that as estimated."""
    attempts: tuple[AttemptSummary, ...]
    limits: Limits
    spec: JobSpec

    @property
    def running(self) -> bool:
        return self.state is JobState.RUNNING

    def as_json(self) -> dict[str, Any]:
        """The summary as JSON values."""
        values = asdict(self)
        values["limits"] = self.limits.model_dump(mode="json", exclude={"schema_version"})
        values["spec"] = self.spec.model_dump(mode="json", exclude={"schema_version"})
        return values


def summarise(job: Job, history: Sequence[Row] | None = None) -> JobSummary:
    """Read the job's records; a few requests for each attempt.

    The newest losses and the speed come from the job's `history` (`Metrics.rows`), or without it from the last piece
    of metrics alone, which is nearly as good.
    """
    status = status_of(job)
    spec = job.read_spec()
    attempts = job.attempts()
    rows = _newest_rows(job, attempts) if history is None else history
    read = [_AttemptRecords(attempt) for attempt in attempts]
    for before, after in itertools.pairwise(read):
        before.successor, after.predecessor = after, before
    summaries = tuple(records.summary() for records in read)
    beats = [records.heartbeat for records in read if records.heartbeat]
    total = next((beat.total_steps for beat in reversed(beats) if beat.total_steps), spec.total_steps)
    step = next((summary.to_step for summary in reversed(summaries) if summary.to_step is not None), 0)
    running = bool(summaries) and summaries[-1].end_reason is None
    seconds_left = _seconds_left(rows, step, total) if running and isinstance(total, int) else None
    spent = sum(summary.cost_usd for summary in summaries)
    return JobSummary(
        job_id=job.job_id,
        state=status.state if status else None,
        reason=status.reason if status and status.state not in (JobState.RUNNING, JobState.COMPLETED) else "",
        step=step,
        total_steps=total if isinstance(total, int) else None,
        committed_step=max((records.committed_step for records in read[-1:]), default=0),
        train_loss=_newest(rows, "train_loss"),
        val_loss=_newest(rows, "val_loss"),
        seconds_left=seconds_left,
        seconds=sum(summary.seconds for summary in summaries),
        cost_usd=spent,
        cost_left_usd=_cost_left(job, summaries[-1], seconds_left, spent) if running else None,
        attempts=summaries,
        limits=job.read_limits(),
        spec=spec,
    )


class _AttemptRecords:
    """The records of one attempt, each read once, and its neighbours."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.launch: Launch | None = attempt.read_launch()
        self.claim = attempt.read_claim()
        self.start = attempt.read_start()
        self.heartbeat = attempt.read_heartbeat()
        self.outcome: Outcome | None = attempt.read_outcome()
        self.predecessor: _AttemptRecords | None = None
        self.successor: _AttemptRecords | None = None

    @property
    def committed_step(self) -> int:
        known = (self.outcome, self.heartbeat)
        start = self.start.step if self.start else 0
        return max(start, *(record.committed_step if record else 0 for record in known))

    def summary(self) -> AttemptSummary:
        launch, outcome, heartbeat = self.launch, self.outcome, self.heartbeat
        last = outcome or heartbeat
        return AttemptSummary(
            number=self.attempt.number,
            pool=launch.pool if launch else "",
            instance=(self.claim.instance if self.claim else "") or (launch.instance if launch else ""),
            launched_because=launch.reason if launch else "",
            end_reason=outcome.end_reason if outcome else None,
            end=outcome.label if outcome else self._doing(),
            message=outcome.message if outcome else "",
            from_step=self.start.step if self.start else None,
            to_step=self._to_step(),
            steps_lost=self._steps_lost(),
            recovery_seconds=self._recovery_seconds(),
            seconds=last.seconds if last else 0.0,
            usd_per_hour=attempt_usd_per_hour(launch, self.claim, last) if launch else 0.0,
            cost_usd=last.cost_usd if last else 0.0,
            notices=tuple(f"{n.source}: {n.reason}" for n in outcome.notifications) if outcome else (),
            saving=last.saving if last else {},
            mtbf_seconds=launch.mtbf_seconds if launch else None,
            price_remark=self.claim.price_remark if self.claim else "",
        )

    def _doing(self) -> str:
        if self.heartbeat:
            return f"running ({self.heartbeat.phase})"
        return "starting" if self.claim else "waiting for a machine"

    def _to_step(self) -> int | None:
        if self.start is None:
            return None
        return max(self.committed_step, *(r.step if r else 0 for r in (self.outcome, self.heartbeat)))

    def _steps_lost(self) -> int:
        """Against what the next attempt really started from, where there is one: a damaged commit counts as lost."""
        reached = self._to_step()
        if self.outcome is None or reached is None:
            return 0
        later = self.successor
        while later is not None and later.start is None:
            later = later.successor
        kept = later.start.step if later and later.start else self.committed_step
        return max(0, reached - kept)

    def _recovery_seconds(self) -> float | None:
        if self.predecessor is None or self.predecessor.outcome is None or self.claim is None:
            return None
        gone = self.predecessor.outcome.ended_at
        launch = self.launch
        if launch and (STARTED_AGAIN in launch.reason or self.predecessor.outcome.end_reason is EndReason.BUDGET):
            gone = launch.decided_at  # a person decided when to go on
        elif self.predecessor.outcome.decided_by != "agent" and self.predecessor.heartbeat:
            gone = self.predecessor.heartbeat.at
        for record in (self.outcome, self.heartbeat):
            if record and record.first_step_after_seconds is not None:
                back = self.claim.claimed_at.timestamp() + record.first_step_after_seconds
                return round(max(0.0, back - gone.timestamp()), 1)
        return None


def _cost_left(job: Job, attempt: AttemptSummary, seconds_left: float | None, spent_usd: float) -> float | None:
    if seconds_left is not None:
        return seconds_left / 3600 * attempt.usd_per_hour
    planned = read_plan(job)
    return max(0.0, planned.usd - spent_usd) if planned else None


def _newest_rows(job: Job, attempts: Sequence[Attempt]) -> list[Row]:
    """The last heartbeat's metrics and the last piece sent: enough for the newest losses, in a few requests."""
    for attempt in reversed(attempts):
        heartbeat = attempt.read_heartbeat()
        if heartbeat is not None:
            rows: list[Row] = [{"step": heartbeat.step, "attempt": attempt.number, **heartbeat.metrics}]
            return rows + Metrics(job).of_attempt(attempt, pieces=1)
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
