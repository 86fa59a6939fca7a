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
from crucible.supervision.snapshot import AttemptView, JobSnapshot
from crucible.supervision.supervised_job import SupervisedJob

_WRITE_TEST = "write-test"
"""An object of a heartbeat's size, to see whether the store takes it."""


class AttemptWatch:
    """Carries out what `attempt_policy.judge` says of a live attempt."""

    def __init__(self, supervised: SupervisedJob) -> None:
        self._supervised = supervised
        self._silence = _Silence(supervised.clock)
        self._asked_to_stop: set[int] = set()
        self._review_at = 0.0
        self._budget_look_at = 0.0

    def until_over(self, view: AttemptView) -> None:
        """Until the attempt has an outcome, its own or one that is given to it here."""
        supervised = self._supervised
        self._start(view)
        self._silence = _Silence(supervised.clock)
        self._review_at = supervised.clock() + supervised.timeouts.placement_review
        while (snapshot := supervised.look(self._silence.restart)).live is not None:
            step = self._judge(snapshot, snapshot.live)
            if isinstance(step, Declare):
                if step.end_reason is not EndReason.LOST or self._store_takes_writes():
                    self._declare(snapshot.live, step)
                continue
            if isinstance(step, AskToStop) and view.number not in self._asked_to_stop:
                self._ask_to_stop(snapshot.live, step.request)
            supervised.wait(supervised.timeouts.poll)
        over = snapshot.attempts[-1]
        assert over.ended is not None
        outcome = over.ended.outcome
        supervised.retire(over, outcome)
        supervised.notify(f"attempt {over.number} {outcome.label} at step {outcome.committed_step}: {outcome.message}")

    def _start(self, view: AttemptView) -> None:
        """Launch it, maybe once more: idempotent, since the previous supervisor may have died in mid-launch."""
        assert view.launch is not None  # of a live attempt, by `SnapshotReader`
        supervised = self._supervised
        try:
            supervised.launcher.launch(supervised.job, view.launch)
        except CrucibleError as error:
            if view.claimed:
                return  # it runs already; only the pool's hints about it are missing
            snapshot = supervised.look()
            if snapshot.live is None or snapshot.live.claimed:
                return
            same = same_refusals(snapshot.attempts[:-1], view.pool, str(error))
            self._declare(view, refusal(str(error), same))

    def _judge(self, snapshot: JobSnapshot, live: AttemptView) -> Step:
        """What to do about the attempt; its pool is asked only where that matters."""
        supervised = self._supervised
        # Before anything that may take its time: a pool that is slow to answer is no silence of the attempt.
        seconds = self._silence.seconds(live)
        supervised.show(lambda: supervised.listener.watched(supervised.job, live.heartbeat))
        seen = Observation(
            silent_seconds=seconds,
            leave=self._why_leave(snapshot),
            over_limit=self._over_limit(snapshot),
            waited_for=live.pool in supervised.waits_for,
        )
        step = judge(live, seen, supervised.timeouts)
        if not isinstance(step, AskPool):
            return step
        hint = supervised.hint(live)
        if hint.queued:
            supervised.notify_once(f"attempt {live.number} {hint.message}", hint.message)
        same = same_refusals(snapshot.attempts[:-1], live.pool, hint.message)
        return judge(live, replace(seen, hint=hint, same_refusals=same), supervised.timeouts)

    def _why_leave(self, snapshot: JobSnapshot) -> str | None:
        """The placement policy's answer, asked every so often."""
        supervised = self._supervised
        if supervised.placement_policy is None or supervised.clock() < self._review_at:
            return None
        self._review_at = supervised.clock() + supervised.timeouts.placement_review
        return supervised.placement_policy.why_leave(snapshot.attempts[supervised.attempts_before_restart :])

    def _over_limit(self, snapshot: JobSnapshot) -> str | None:
        """The job's time, by this machine's clock (the attempt's own may be wrong), or a shared budget is used up."""
        supervised, hours = self._supervised, snapshot.limits.max_hours
        if hours and supervised.age_hours(snapshot) >= hours:
            return f"the job's {hours:g} hours are over"
        if supervised.clock() < self._budget_look_at:
            return None
        self._budget_look_at = supervised.clock() + supervised.timeouts.placement_review
        return supervised.over_budget()

    def _store_takes_writes(self) -> bool:
        """Whether silence means anything: a healthy attempt writes no heartbeat to a store that is full but readable.

        Waits until the store takes a write; False when it did not at first, and the silence counts anew.
        """
        store = self._supervised.job.store
        refused = False

        def wait() -> None:
            nonlocal refused
            refused = True
            self._silence.restart()

        self._supervised.persist(lambda: store.write(_WRITE_TEST, bytes(2048)), wait)
        store.delete(_WRITE_TEST)
        if refused:
            self._silence.restart()
        return not refused

    def _ask_to_stop(self, view: AttemptView, request: StopRequest) -> None:
        supervised = self._supervised
        supervised.persist(lambda: supervised.job.attempt(view.number).request_stop(request))
        self._asked_to_stop.add(view.number)
        supervised.notify(f"attempt {view.number} is asked to save and stop: {request.reason}")

    def _declare(self, view: AttemptView, declared: Declare) -> None:
        supervised = self._supervised
        limits = supervised.persist(supervised.job.read_limits) if declared.end_reason is EndReason.BUDGET else None
        outcome = supervised.outcome(declared, view).model_copy(update={"limits": limits})
        supervised.persist(lambda: supervised.job.attempt(view.number).end(outcome))


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
