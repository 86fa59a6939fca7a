"""What a sweep may still use, and how it ended: functions of its limits and of its trials.

A sweep has one budget. Each trial is a job with limits of its own and is allowed what the whole sweep has, so raising
the sweep's limits raises theirs.
"""

from __future__ import annotations

from collections.abc import Collection
from datetime import datetime, timedelta

from crucible.jobs.records import EndReason, Limits, StopRequest
from crucible.jobs.status import JobState
from crucible.sweeps.records import SweepLimits
from crucible.sweeps.trials import Trial, best_trial

FRUITLESS_ATTEMPTS = 4
"""In a row, before a trial counts as failed: a sweep's own machine may be killed more often than a job's."""
_STOPPED = {EndReason.BUDGET: JobState.BUDGET_STOP, EndReason.CANCELLED: JobState.CANCELLED}


def deadline(limits: SweepLimits, created_at: datetime) -> datetime | None:
    """When the sweep's time is over; None without a limit."""
    ends = [limits.finish_by] if limits.finish_by else []
    ends += [created_at + timedelta(hours=limits.max_hours)] if limits.max_hours else []
    return min(ends, default=None)


def trial_limits(limits: SweepLimits, until: datetime | None, job_created_at: datetime) -> Limits:
    """The limits of a trial's job: those of the whole sweep, its deadline as hours since the job was made."""
    hours = (until - job_created_at).total_seconds() / 3600 if until else None
    return Limits(
        max_cost_usd=limits.max_cost_usd,
        max_hours=None if hours is None else max(hours, 1e-6),
        max_attempts_without_progress=FRUITLESS_ATTEMPTS,
    )


def why_used_up(limits: SweepLimits, until: datetime | None, cost_usd: float, at: datetime) -> str:
    """Which limit is reached, as a sentence; empty while something is left."""
    if limits.max_cost_usd is not None and cost_usd >= limits.max_cost_usd:
        return f"the sweep's budget of ${limits.max_cost_usd:g} is used up"
    if until is not None and at >= until:
        return f"the sweep's time is over (until {until:%Y-%m-%d %H:%M} UTC)"
    return ""


def conclude(
    trials: Collection[Trial], stop: StopRequest | None, failure: BaseException | None
) -> tuple[JobState, str]:
    """The state a sweep ends in and the sentence about it: `failure` ended it, `stop` was asked for, or it is done."""
    done = f"{len(trials)} trials, {sum(trial.steps for trial in trials):,} steps"
    best = best_trial(trials)
    if best is not None:
        done += f"; best: trial {best.number} with {best.objective.label} {best.value:.4f} at step {best.shown_step:,}"
    if failure is not None:
        return JobState.FAILED, f"{failure}; {done}; start it again to continue"
    if stop is not None:
        state = _STOPPED.get(stop.end_reason, JobState.FAILED)
        return state, f"{stop.reason}; {done}; start it again to continue with what is saved"
    if best is None and trials:
        return JobState.FAILED, f"all {len(trials)} trials failed; the leaderboard says why"
    return JobState.COMPLETED, done
