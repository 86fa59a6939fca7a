"""Ends a job's live attempt when the job itself stops: on a person's request, or because its records are damaged."""

from __future__ import annotations

from crucible.errors import RecordDamaged, StoreError
from crucible.jobs.records import EndReason, Outcome, StopRequest
from crucible.supervision.attempt_policy import Declare
from crucible.supervision.launcher import PoolSays
from crucible.supervision.snapshot import SUPERVISOR, AttemptView
from crucible.supervision.supervised_job import SupervisedJob


def stop_live_attempt(supervised: SupervisedJob, request: StopRequest, wait_seconds: float) -> None:
    """Ask the live attempt, if there is one, to save and stop, and wait for it that long at most.

    Where the store does not answer, the listener is notified, and the pool of a cancelled attempt still ends it. An
    attempt whose job has damaged records is asked, and not waited for.
    """
    supervised.stopping = True
    try:
        live = supervised.read().live
        if live is not None:
            _stop(supervised, live, request, wait_seconds)
    except StoreError as error:
        if isinstance(error, RecordDamaged):
            supervised.notify(f"stops without waiting for the attempt: {error}")
            ask_newest_attempt_to_stop(supervised, request)
        else:
            supervised.notify(f"the attempt could not be asked to stop: {error}")
        if supervised.live is not None and request.end_reason is EndReason.CANCELLED:
            outcome = Outcome(end_reason=EndReason.CANCELLED, message=request.reason, decided_by=SUPERVISOR)
            supervised.retire(supervised.live, outcome)


def _stop(supervised: SupervisedJob, view: AttemptView, request: StopRequest, wait_seconds: float) -> None:
    attempt = supervised.job.attempt(view.number)
    supervised.persist(lambda: attempt.request_stop(request))
    if not view.claimed:
        outcome = supervised.outcome(Declare(request.end_reason, request.reason))
        supervised.retire(view, supervised.persist(lambda: attempt.end(outcome)))
        return
    deadline = supervised.clock() + wait_seconds
    while (ended := supervised.persist(attempt.read_outcome)) is None:
        if supervised.clock() >= deadline or supervised.hint(view).says is PoolSays.ENDED:
            return
        supervised.wait(0.5)
    supervised.retire(view, ended)


def ask_newest_attempt_to_stop(supervised: SupervisedJob, request: StopRequest) -> None:
    """Without reading more than the attempts' numbers, since records are damaged, and without waiting for it."""
    supervised.stopping = True
    try:
        attempts = supervised.persist(supervised.job.attempts)
        if attempts:
            supervised.persist(lambda: attempts[-1].request_stop(request))
    except StoreError as error:
        supervised.notify(f"the attempt could not be asked to stop: {error}")
