"""Watches a job's attempts, one after the other, until each has an outcome."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from crucible.errors import CrucibleError
from crucible.jobs.records import EndReason, StopRequest
from crucible.supervision.attempt_policy import (
    AskPool,
    AskToStop,
    Declare,
    Observation,
    Step,
    judge,
    refusal,
    same_refusals,
)
from crucible.supervision.context import SupervisionContext
from crucible.supervision.snapshot import AttemptView, JobSnapshot

_WRITE_TEST = "write-test"
"""An object of a heartbeat's size, to see whether the store takes it."""


class AttemptWatch:
    """Carries out what `attempt_policy.judge` decides about a live attempt."""

    def __init__(self, context: SupervisionContext) -> None:
        self._context = context
        self._silence = _Silence(context.clock)
        self._asked_to_stop: set[int] = set()
        self._review_at = 0.0
        self._budget_look_at = 0.0

    def until_over(self, view: AttemptView) -> None:
        """Until the attempt has an outcome, its own or one that is given to it here."""
        context = self._context
        self._start(view)
        self._silence = _Silence(context.clock)
        self._review_at = context.clock() + context.timeouts.placement_review
        while (snapshot := context.look(self._silence.restart)).live is not None:
            step = self._judge(snapshot, snapshot.live)
            if isinstance(step, Declare):
                if step.end_reason is not EndReason.LOST or self._store_takes_writes():
                    self._declare(snapshot.live, step)
                continue
            if isinstance(step, AskToStop) and view.number not in self._asked_to_stop:
                self._ask_to_stop(snapshot.live, step.request)
            context.wait(context.timeouts.poll)
        over = snapshot.attempts[-1]
        assert over.ended is not None
        outcome = over.ended.outcome
        context.retire(over, outcome)
        context.notify(f"attempt {over.number} {outcome.label} at step {outcome.committed_step}: {outcome.message}")

    def _start(self, view: AttemptView) -> None:
        """Launch it, maybe once more: idempotent, since the previous supervisor may have died in mid-launch."""
        assert view.launch is not None  # of a live attempt, by `SnapshotReader`
        context = self._context
        try:
            context.launcher.launch(context.job, view.launch)
        except CrucibleError as error:
            if view.claimed:
                return  # it runs already; only the pool's hints about it are missing
            snapshot = context.look()
            if snapshot.live is None or snapshot.live.claimed:
                return
            same = same_refusals(snapshot.attempts[:-1], view.pool, str(error))
            self._declare(view, refusal(str(error), same))

    def _judge(self, snapshot: JobSnapshot, live: AttemptView) -> Step:
        """What to do about the attempt; its pool is asked only where that matters."""
        context = self._context
        # Before anything that may take its time: a pool that is slow to answer is no silence of the attempt.
        seconds = self._silence.seconds(live)
        context.show(lambda: context.listener.watched(context.job, live.heartbeat))
        seen = Observation(
            silent_seconds=seconds,
            leave=self._why_leave(snapshot),
            over_limit=self._over_limit(snapshot),
            waited_for=live.pool in context.waits_for,
        )
        step = judge(live, seen, context.timeouts)
        if not isinstance(step, AskPool):
            return step
        hint = context.hint(live)
        if hint.queued:
            context.notify_once(f"attempt {live.number} {hint.message}", hint.message)
        elif hint.unserved:
            context.notify_once(f"attempt {live.number} waits: {hint.message}", hint.message)
        same = same_refusals(snapshot.attempts[:-1], live.pool, hint.message)
        return judge(live, replace(seen, hint=hint, same_refusals=same), context.timeouts)

    def _why_leave(self, snapshot: JobSnapshot) -> str | None:
        """The placement policy's answer, asked every so often."""
        context = self._context
        if context.placement_policy is None or context.clock() < self._review_at:
            return None
        self._review_at = context.clock() + context.timeouts.placement_review
        return context.placement_policy.why_leave(snapshot.attempts[context.attempts_before_restart :])

    def _over_limit(self, snapshot: JobSnapshot) -> str | None:
        """The job's time, by this machine's clock (the attempt's own may be wrong), or a shared budget is used up."""
        context, hours = self._context, snapshot.limits.max_hours
        if hours and context.age_hours(snapshot) >= hours:
            return f"the job's {hours:g} hours are over"
        if context.clock() < self._budget_look_at:
            return None
        self._budget_look_at = context.clock() + context.timeouts.placement_review
        return context.over_budget()

    def _store_takes_writes(self) -> bool:
        """Whether silence means anything: a healthy attempt writes no heartbeat to a store that is full but readable.

        Waits until the store takes a write; False when it did not at first, and the silence starts again.
        """
        store = self._context.job.store
        refused = False

        def wait() -> None:
            nonlocal refused
            refused = True
            self._silence.restart()

        self._context.persist(lambda: store.write(_WRITE_TEST, bytes(2048)), wait)
        self._context.persist(lambda: store.delete(_WRITE_TEST))
        if refused:
            self._silence.restart()
        return not refused

    def _ask_to_stop(self, view: AttemptView, request: StopRequest) -> None:
        context = self._context
        context.persist(lambda: context.job.attempt(view.number).request_stop(request))
        self._asked_to_stop.add(view.number)
        context.notify(f"attempt {view.number} is asked to save and stop: {request.reason}")

    def _declare(self, view: AttemptView, declared: Declare) -> None:
        context = self._context
        limits = context.persist(context.job.read_limits) if declared.end_reason is EndReason.BUDGET else None
        outcome = context.outcome(declared, view).model_copy(update={"limits": limits})
        context.persist(lambda: context.job.attempt(view.number).end(outcome))


class _Silence:
    """How long an attempt's records have stood still, by this process's clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: tuple[int, bool] | None = None
        self._since = clock()

    def seconds(self, view: AttemptView) -> float:
        position = (view.heartbeat.sequence if view.heartbeat else -1, view.claimed)
        if position != self._last:
            self._last, self._since = position, self._clock()
        return self._clock() - self._since

    def restart(self) -> None:
        self._since = self._clock()
