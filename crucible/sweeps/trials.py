"""Where a trial stands, read from its job's records.

The loss of a rung is what the attempt that was asked to train to it measured there, over the whole validation split:
that attempt's own metrics at its last step. They never change once it has ended, whatever later attempts do.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from crucible.checkpoints.commits import Checkpoints
from crucible.errors import ObjectMissing, RecordDamaged
from crucible.jobs.job import Attempt, Job
from crucible.jobs.metrics import Metrics
from crucible.jobs.records import EndReason
from crucible.jobs.status import JobState, status_of
from crucible.sweeps.records import TrialRecord
from crucible.sweeps.schedules import FAILED, TrialRung
from crucible.sweeps.space import Values

_REACHED = (EndReason.PAUSED, EndReason.COMPLETED)
_GIVEN_UP = (JobState.FAILED, JobState.STOPPED)


@dataclass(frozen=True)
class Trial:
    """One trial as its records show it now."""

    number: int
    values: Values
    job_id: str
    losses: Mapping[int, float] = field(default_factory=dict)
    """Step of a rung → validation loss there, in nats per token."""
    failure: str = ""
    """Why it failed; empty for every other trial."""
    state: str = "new"
    """new, running, saved (in the middle of a rung), waiting (at a rung), complete, failed."""
    cost_usd: float = 0.0
    seconds: float = 0.0
    attempts: int = 0
    steps: int = 0
    """Saved so far."""

    @property
    def record(self) -> TrialRecord:
        """Its record, written when it began."""
        return TrialRecord(number=self.number, values=dict(self.values), job_id=self.job_id)

    @property
    def step(self) -> int:
        """The highest rung at which it was measured; 0 before the first."""
        return max(self.losses, default=0)

    @property
    def loss(self) -> float | None:
        """The validation loss at that rung."""
        return self.losses.get(self.step)

    @property
    def rank_key(self) -> tuple[bool, int, float, int]:
        """Sorts the best first: those that were trained furthest, by loss; failed ones last."""
        loss = math.inf if self.loss is None else self.loss
        return bool(self.failure), -self.step, loss, self.number

    def results(self, ladder: Sequence[int]) -> dict[TrialRung, float]:
        """Its results for the planner: a failed trial never reaches the rungs above."""
        measured = {
            TrialRung(self.number, rung): self.losses[step] for rung, step in enumerate(ladder) if step in self.losses
        }
        if not self.failure:
            return measured
        return {TrialRung(self.number, rung): FAILED for rung in range(len(ladder))} | measured


def read_trial(record: TrialRecord, job: Job, ladder: Sequence[int]) -> Trial:
    """Read a trial from the store; a few requests for each attempt. A damaged record fails this trial, no other."""
    failure = record.problem
    if not failure:
        try:
            return _read_trial(record, job, ladder)
        except RecordDamaged as error:
            failure = str(error)
    return Trial(record.number, record.values, record.job_id, failure=failure, state="failed")


def _read_trial(record: TrialRecord, job: Job, ladder: Sequence[int]) -> Trial:
    with suppress(ObjectMissing):  # the sweep was killed between the trial's record and its job's
        job.read_spec()
    attempts = job.attempts()
    losses: dict[int, float] = {}
    failure, cost, seconds, steps = "", 0.0, 0.0, 0
    running = False
    for attempt in attempts:
        outcome = attempt.read_outcome()
        last = outcome or attempt.read_heartbeat()
        running = outcome is None
        if last is not None:
            cost, seconds, steps = cost + last.cost_usd, seconds + last.seconds, max(steps, last.committed_step)
        if outcome is None or outcome.end_reason not in _REACHED or outcome.committed_step not in ladder:
            continue
        step = outcome.committed_step
        loss = _loss_at(attempt, step)
        if loss is None or not math.isfinite(loss):
            failure = f"the validation loss at step {step} is {'missing' if loss is None else 'no number'}"
        else:
            losses.setdefault(step, loss)
    failure = failure or _why_given_up(job, attempts)
    facts: dict[str, Any] = {"cost_usd": cost, "seconds": seconds, "attempts": len(attempts), "steps": steps}
    reached = max(losses, default=0)
    if failure:
        state = "failed"
    elif reached == ladder[-1]:
        state = "complete"
    elif running:
        state = "running"
    elif steps > reached:
        state = "saved"
    else:
        state = "waiting" if losses else "new"
    return Trial(record.number, record.values, record.job_id, losses, failure, state, **facts)


def _loss_at(attempt: Attempt, step: int) -> float | None:
    """What the attempt last measured at its last step; without those metrics, what the checkpoint says."""
    metrics = Metrics(attempt.job)
    for pieces in (2, None):  # it is nearly always among the last lines
        for row in metrics.of_attempt(attempt, pieces):
            if row["step"] == step and "val_loss" in row:
                return row["val_loss"]
    return next((c.val_loss for c in Checkpoints(attempt.job).list() if c.step == step), None)


def _why_given_up(job: Job, attempts: Sequence[Attempt]) -> str:
    status = status_of(job)
    if status is None or status.state not in _GIVEN_UP:
        return ""
    outcome = attempts[-1].read_outcome() if attempts else None
    if status.state is JobState.STOPPED and outcome is not None and outcome.end_reason is EndReason.NOT_STARTED:
        return ""  # no pool could start it: that says nothing about these values
    return status.reason
