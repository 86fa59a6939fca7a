"""Stopping a job from outside: its supervisor is asked to; if there is none, what it would do is done here."""

from __future__ import annotations

from typing import NamedTuple

from crucible.errors import ConfigError, RecordDamaged
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import Outcome, StopRequest
from crucible.jobs.status import JobState, JobStatus, status_of
from crucible.supervision.heartbeat import SupervisorHeartbeat, living_supervisors, remove_heartbeat


class Stopped(NamedTuple):
    """What happens now, as a message, and to which attempt."""

    message: str
    attempt: int | None


def stop_job(job: Job, request: StopRequest) -> Stopped:
    """Stop the job whatever it is doing.

    Raises `ConfigError` when it is not running, `StoreError` when its records cannot be read or written.
    """
    supervisors = _living_supervisors(job)
    if not supervisors:
        return stop_unsupervised_job(job, request)
    live = _live_attempt(job)
    if live is not None:
        live.request_stop(request)
    for supervisor in supervisors:
        job.request_stop(request, supervisor)
    return _asked(live, "its supervisor is asked to stop")


def stop_unsupervised_job(job: Job, request: StopRequest) -> Stopped:
    """Stop a job whose supervisor is gone: what that would have done. Raises as `stop_job` does."""
    live = _live_attempt(job)
    if live is not None:
        live.request_stop(request)
    status = status_of(job)
    if live is None and (status is None or status.state is not JobState.RUNNING):
        raise ConfigError(f"job {job.job_id} is not running: {_why_not(status)}")
    if live is not None and live.read_claim() is None:
        live.end(Outcome(end_reason=request.end_reason, message=request.reason, decided_by="person"))
    newest = job.read_newest_supervisor()
    stopped = JobStatus(
        state=JobState.after_request(request),
        reason=request.reason,
        supervisor=newest.number if newest else 0,
        flow_run_id=newest.flow_run_id if newest else "",
        attempts_before_restart=status.attempts_before_restart if status else 0,
    )
    job.store.write_model("status.json", stopped)
    if newest is not None and newest.flow_run_id:
        remove_heartbeat(job.root, newest.flow_run_id)  # or the watchdog would start it again
    return _asked(live, "nothing was running; the job is stopped")


def _living_supervisors(job: Job) -> list[str]:
    """The flow runs that decide for the job now; those of a stage or a trial belong to another job or a sweep."""
    try:
        status = status_of(job)
        runs = status is not None and status.state is JobState.RUNNING
    except RecordDamaged:
        runs = True  # perhaps
    newest = job.read_newest_supervisor() if runs else None

    def concerns(record: SupervisorHeartbeat) -> bool:
        return record.subject == job.job_id or (newest is not None and record.flow_run_id == newest.flow_run_id)

    return living_supervisors(job.root, concerns)


def _asked(live: Attempt | None, otherwise: str) -> Stopped:
    if live is None:
        return Stopped(otherwise, None)
    return Stopped(f"attempt {live.number} is asked to save and stop", live.number)


def _live_attempt(job: Job) -> Attempt | None:
    attempts = job.attempts()
    return attempts[-1] if attempts and attempts[-1].read_outcome() is None else None


def _why_not(status: JobStatus | None) -> str:
    if status is not None:
        return f"it is {status.state} ({status.reason})"
    return "it was never started"
