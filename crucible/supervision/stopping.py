"""Ends a job's live attempt when the job itself stops: on a person's request, or because its records are damaged."""

from __future__ import annotations

from crucible.errors import RecordDamaged, StoreError
from crucible.jobs.records import EndReason, Outcome, StopRequest
from crucible.supervision.attempt_policy import Declare
from crucible.supervision.context import SupervisionContext
from crucible.supervision.launcher import PoolSays
from crucible.supervision.snapshot import SUPERVISOR, AttemptView


def stop_live_attempt(context: SupervisionContext, request: StopRequest, wait_seconds: float) -> None:
    """Ask the live attempt, if there is one, to save and stop, and wait for it that long at most.

    Where the store does not answer, the listener is notified, and the pool of a cancelled attempt still ends it. An
    attempt whose job has damaged records is asked, and not waited for.
    """
    context.stopping = True
    try:
        live = context.read().live
        if live is not None:
            _stop(context, live, request, wait_seconds)
    except StoreError as error:
        if isinstance(error, RecordDamaged):
            context.notify(f"stops without waiting for the attempt: {error}")
            ask_newest_attempt_to_stop(context, request)
        else:
            context.notify(f"the attempt could not be asked to stop: {error}")
        if context.live is not None and request.end_reason is EndReason.CANCELLED:
            outcome = Outcome(end_reason=EndReason.CANCELLED, message=request.reason, decided_by=SUPERVISOR)
            context.retire(context.live, outcome)


def _stop(context: SupervisionContext, view: AttemptView, request: StopRequest, wait_seconds: float) -> None:
    attempt = context.job.attempt(view.number)
    context.persist(lambda: attempt.request_stop(request))
    if not view.claimed:
        outcome = context.outcome(Declare(request.end_reason, request.reason))
        context.retire(view, context.persist(lambda: attempt.end(outcome)))
        return
    deadline = context.clock() + wait_seconds
    while (ended := context.persist(attempt.read_outcome)) is None:
        if context.clock() >= deadline or context.hint(view).says is PoolSays.ENDED:
            return
        context.wait(0.5)
    context.retire(view, ended)


def ask_newest_attempt_to_stop(context: SupervisionContext, request: StopRequest) -> None:
    """Without reading more than the attempts' numbers, since records are damaged, and without waiting for it."""
    context.stopping = True
    try:
        attempts = context.persist(context.job.attempts)
        if attempts:
            context.persist(lambda: attempts[-1].request_stop(request))
    except StoreError as error:
        context.notify(f"the attempt could not be asked to stop: {error}")
