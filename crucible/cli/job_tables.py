"""How `crucible jobs` shows what the records say, also where some of them are damaged."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any, TypeVar

from crucible.formatting import UNKNOWN, counted, duration, money

if TYPE_CHECKING:
    from crucible.checkpoints.manifest import Checkpoint
    from crucible.jobs.job import Job
    from crucible.jobs.records import Limits
    from crucible.reports import AttemptSummary, JobSummary

T = TypeVar("T")


def summary_or_damage(job: Job) -> tuple[JobSummary | None, dict[str, Any] | None]:
    """The job's summary, or why there is none: one damaged job must not hide the others."""
    from crucible.errors import StoreError, StoreUnavailable
    from crucible.reports import summarise

    try:
        return summarise(job), None
    except StoreUnavailable:
        raise
    except StoreError as error:
        return None, {"job": job.job_id, "state": "damaged", "reason": str(error)}


def json_line(summary: JobSummary) -> dict[str, Any]:
    """What `ls --json` says of a job."""
    return {
        "job": summary.job_id,
        "state": summary.state,
        "reason": summary.reason,
        "step": summary.step,
        "total_steps": summary.total_steps,
        "committed_step": summary.committed_step,
        "val_loss": summary.val_loss,
        "train_loss": summary.train_loss,
        "attempts": len(summary.attempts),
        "pool": summary.attempts[-1].pool if summary.attempts else None,
        "cost_usd": summary.cost_usd,
        "seconds": summary.seconds,
        "created_at": summary.spec.created_at.isoformat(),
    }


def attempt_row(attempt: AttemptSummary) -> list[str]:
    """An attempt's line in the table of `show`."""
    steps = UNKNOWN
    if attempt.from_step is not None and attempt.to_step is not None:
        steps = f"{attempt.from_step:,} → {attempt.to_step:,}"
    return [
        str(attempt.number),
        attempt.pool or UNKNOWN,
        attempt.shown_machines or UNKNOWN,
        steps,
        str(attempt.steps_lost) if attempt.end_reason else UNKNOWN,
        duration(attempt.recovery_seconds) if attempt.recovery_seconds is not None else UNKNOWN,
        money(attempt.cost_usd),
        attempt.end + (f": {attempt.message}" if attempt.message and attempt.message != attempt.end else ""),
    ]


def unless_damaged(read: Callable[[], T], damage: list[str]) -> T | None:
    """What `read` returns; None for a damaged record, which is added to `damage`."""
    from crucible.errors import RecordDamaged

    try:
        return read()
    except RecordDamaged as error:
        damage.append(str(error))
        return None


def saved_label(saved: list[Checkpoint] | None) -> str:
    """The newest checkpoint, and how many there are; None: their records are damaged."""
    if saved is None:
        return UNKNOWN
    return f"step {saved[0].shown_step:,}, {counted(len(saved), 'checkpoint')}" if saved else "nothing yet"


def limits_label(limits: Limits) -> str:
    """What may be spent, in one line."""
    return ", ".join(
        [
            money(limits.max_cost_usd) if limits.max_cost_usd is not None else "any cost",
            f"{limits.max_hours:g} hours" if limits.max_hours is not None else "any time",
            f"{limits.max_attempts} attempts",
            f"{limits.max_attempts_without_progress} in a row without progress",
        ]
    )


def read_deadline(job: Job) -> datetime | None:
    """The `finish_by`, in UTC, of the flow run that decides for the job now or did last."""
    from crucible.placement.choice import read_choice

    supervisor = job.read_newest_supervisor()
    choice = read_choice(job, supervisor.flow_run_id) if supervisor and supervisor.flow_run_id else None
    return choice.finish_by.astimezone(UTC) if choice and choice.finish_by else None


def loss_text(value: float | None) -> str:
    """A loss with four digits."""
    return UNKNOWN if value is None else f"{value:.4f}"


def figure_text(value: float | None) -> str:
    """A metric of any size; empty where there is none."""
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}"
