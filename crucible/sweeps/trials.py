"""Where a trial stands, read from its job's records.

What a rung measured never changes once the attempt that was asked to train to it has ended, whatever later attempts
do; `crucible.sweeps.kinds` says where it is read.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from crucible.errors import ObjectMissing, RecordDamaged
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import EndReason
from crucible.jobs.status import JobState, status_of
from crucible.sweeps.kinds import REACHED, TrialKind
from crucible.sweeps.records import TrialRecord
from crucible.sweeps.schedules import FAILED, TrialRung
from crucible.sweeps.searchable import Values
from crucible.tune_config import VAL_LOSS, Objective

_GIVEN_UP = (JobState.FAILED, JobState.STOPPED)


@dataclass(frozen=True)
class Trial:
    """One trial as its records show it now."""

    number: int
    values: Values
    job_id: str
    losses: Mapping[int, float] = field(default_factory=dict)
    """Step of a rung → what was measured there, as a loss: the less, the better (`Objective.as_loss`)."""
    failure: str = ""
    """Why it failed; empty for every other trial."""
    state: str = "new"
    """new, running, saved (in the middle of a rung), waiting (at a rung), complete, failed."""
    cost_usd: float = 0.0
    seconds: float = 0.0
    attempts: int = 0
    steps: int = 0
    """Saved so far, or done by a script that has ended."""
    objective: Objective = field(default_factory=Objective)

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
        """What is minimised, at that rung."""
        return self.losses.get(self.step)

    @property
    def value(self) -> float | None:
        """The objective's own value at that rung; in nats per token where it is the trainer's validation loss."""
        return None if self.loss is None else self.objective.as_loss(self.loss)

    @property
    def shown_step(self) -> int:
        """The step of that rung; of a script that ended by itself, the step that it had reached."""
        return self.steps if self.state == "complete" else self.step

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


def best_trial(trials: Iterable[Trial]) -> Trial | None:
    """The best of those that were measured and have not failed."""
    measured = (trial for trial in trials if trial.losses and not trial.failure)
    return min(measured, key=lambda trial: trial.rank_key, default=None)


def read_trial(record: TrialRecord, job: Job, ladder: Sequence[int], kind: TrialKind) -> Trial:
    """Read a trial from the store; a few requests for each attempt. A damaged record fails this trial, no other."""
    failure = record.problem
    if not failure:
        try:
            return _read_trial(record, job, ladder, kind)
        except RecordDamaged as error:
            failure = str(error)
    return Trial(record.number, record.values, record.job_id, failure=failure, state="failed", objective=kind.objective)


def _read_trial(record: TrialRecord, job: Job, ladder: Sequence[int], kind: TrialKind) -> Trial:
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
        if outcome is None or outcome.end_reason not in REACHED:
            continue
        if outcome.end_reason is EndReason.COMPLETED:
            steps = max(steps, outcome.step)  # a script need not have saved at its end
        for step, value in kind.measured(attempt, outcome, ladder).items():
            if value is None or not math.isfinite(value):
                failure = failure or _no_value(kind.objective, step, value)
            else:
                losses.setdefault(step, kind.objective.as_loss(value))
    failure = failure or _why_given_up(job, attempts)
    facts: dict[str, Any] = {
        "cost_usd": cost,
        "seconds": seconds,
        "attempts": len(attempts),
        "steps": steps,
        "objective": kind.objective,
    }
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


def _no_value(objective: Objective, step: int, value: float | None) -> str:
    if value is not None:
        return f"the {objective.label} at step {step} is no number"
    if objective.metric == VAL_LOSS:
        return f"the {objective.label} at step {step} is missing"
    return f"the script reported no {objective.label}; look at what it reports: `crucible jobs metrics`"


def _why_given_up(job: Job, attempts: Sequence[Attempt]) -> str:
    status = status_of(job)
    if status is None or status.state not in _GIVEN_UP:
        return ""
    outcome = attempts[-1].read_outcome() if attempts else None
    if status.state is JobState.STOPPED and outcome is not None and outcome.end_reason is EndReason.NOT_STARTED:
        return ""  # no pool could start it: that says nothing about these values
    return status.reason
