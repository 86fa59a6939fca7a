"""Where a job stands, by its newest supervisor's word: `jobs/<job>/status.json`."""

from __future__ import annotations

from datetime import datetime
from enum import StrEnum

from pydantic import AliasChoices, Field

from crucible.errors import ObjectMissing
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, Record, ShownText, StopRequest, now


class JobState(StrEnum):
    """Where a job stands."""

    RUNNING = "running"
    COMPLETED = "completed"
    PAUSED = "paused"
    BUDGET_STOP = "budget-stop"
    CANCELLED = "cancelled"
    FAILED = "failed"
    STOPPED = "stopped"
    """Given up: too many attempts, or no progress."""

    @classmethod
    def after_request(cls, request: StopRequest) -> JobState:
        """What a person's request to stop makes of the job; any but a cancellation and a used-up budget pauses it."""
        ends = {EndReason.CANCELLED: cls.CANCELLED, EndReason.BUDGET: cls.BUDGET_STOP}
        return ends.get(request.end_reason, cls.PAUSED)


class JobStatus(Record):
    """The newest supervisor's last word on a job."""

    fix = "delete it: the supervisor writes it again"

    state: JobState
    reason: ShownText
    supervisor: int
    flow_run_id: str = ""
    attempts_before_restart: int = Field(0, validation_alias=AliasChoices("attempts_before_restart", "bygone"))
    """So many attempts, from the first, no longer count because a person started the job again."""
    at: datetime = Field(default_factory=now)


def status_of(job: Job) -> JobStatus | None:
    """The newest supervisor's last word on the job, or None before there was one."""
    try:
        return job.store.read_model("status.json", JobStatus, JobStatus.fix)
    except ObjectMissing:
        return None
