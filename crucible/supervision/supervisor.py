"""Supervision: launches a job's attempts, watches their records, and carries out what the policies decide.

    one look           `SnapshotReader.read`: everything that is on record, typed
    what follows       `attempt_policy.judge` for an attempt that is not over, `retry_policy.decide` for one that is
    here               launch, wait, ask to stop, declare an outcome, end the job

Everything it knows is in the job's records, so a second supervisor carries on where the first was killed. Several
supervisors of one job do no harm: the newest counts (`Job.supervise`), every decision is a create-only record that the
others find, and launching is idempotent.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from crucible.checkpoints.commits import Checkpoints
from crucible.errors import CrucibleError, ObjectMissing, RecordDamaged, StoreError, StoreRefused
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, Launch, Outcome, StopRequest, Supervisor, now
from crucible.jobs.status import JobState, JobStatus, status_of
from crucible.store.retry import persist
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
from crucible.supervision.launcher import Hint, Launcher, Listener, PoolSays
from crucible.supervision.placement_policy import PlacementPolicy
from crucible.supervision.retry_policy import Decision, History, Placement, Timeouts, decide, retry_delay
from crucible.supervision.snapshot import SUPERVISOR, AttemptView, JobSnapshot, SnapshotReader

T = TypeVar("T")

logger = logging.getLogger(__name__)

GIVE_UP_SECONDS = 3.0
"""A stopped job does not wait longer than this for a store that does not answer."""

_ATTEMPTS_STILL_COUNT = {JobState.RUNNING, JobState.COMPLETED, JobState.BUDGET_STOP}
"""After a budget stop what counts is whether the limits were raised, not that someone started the job again."""
_STOPPED = {EndReason.CANCELLED: JobState.CANCELLED, EndReason.BUDGET: JobState.BUDGET_STOP}
"""What a person's request makes of the job; anything else pauses it."""


class _Stop(Exception):
    """A person wants the job to stop."""

    def __init__(self, request: StopRequest) -> None:
        super().__init__(request.reason)
        self.request = request


@dataclass
class Supervision:
    """Supervises one job until it has an end: `Supervision(job, launcher, placements, listener).run()`."""

    job: Job
    launcher: Launcher
    placements: Sequence[Placement]
    listener: Listener
    flow_run_id: str = ""
    stop_at_step: int | None = None
    placement_policy: PlacementPolicy | None = None
    """What knows better than the order of the placements where to go, if anything does."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    over_budget: Callable[[], str | None] = lambda: None
    """Why the job has to save and stop because of a budget it shares with others; asked before launches and every
    `timeouts.placement_review`."""
    stop_requested: Callable[[], StopRequest | None] = lambda: None
    """Asked between two looks: whether a person wants the job to stop. A signal may say so as well, see `stop`."""
    logger: logging.Logger | logging.LoggerAdapter[logging.Logger] = logger
    """Where an error of the listener is logged."""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], datetime] = now
    """For the records; how long something takes is measured by `clock`."""

    def __post_init__(self) -> None:
        self._reader = SnapshotReader(self.job, self.clock)
        self._supervisor: Supervisor | None = None
        self._attempts_before_restart = 0
        self._live: AttemptView | None = None
        self._review_at = 0.0
        self._budget_look_at = 0.0
        self._asked_to_stop: set[int] = set()
        self._warned: set[str] = set()
        self._stopping = False
        self._give_up_at: float | None = None

    def run(self) -> JobStatus:
        """Launch and watch attempts until the job ends; the status returned is also on record.

        A damaged record, or a store that denies access, ends the job as failed. Raises `FencedOut` when another
        supervisor has taken over.
        """
        try:
            self._supervisor = self._persist(lambda: self.job.supervise(self.flow_run_id))
            self._reader = SnapshotReader(self.job, self.clock)
            self._attempts_before_restart = self._count_attempts_before_restart()
            self._record(JobState.RUNNING, "supervised")
            return self._to_the_end()
        except _Stop as stop:
            return self.stop(stop.request, self.timeouts.save)
        except (RecordDamaged, ObjectMissing, StoreRefused) as error:
            return self._fail(error)

    def stop(self, request: StopRequest, wait_seconds: float) -> JobStatus:
        """End the job for now: its attempt saves and stops, and is waited for that long at most.

        Ends within seconds where there is nothing to save, where nothing is left that could, or where the store does
        not answer.
        """
        self._stopping = True
        state = _STOPPED.get(request.end_reason, JobState.PAUSED)
        try:
            snapshot = self._persist(self._reader.read)
            if snapshot.live is not None:
                self._stop_attempt(snapshot.live, request, wait_seconds)
        except StoreError as error:
            self._notify(f"the attempt could not be asked to stop: {error}")
            if self._live is not None and state is JobState.CANCELLED:  # its pool can still end it
                self._retire(
                    self._live, Outcome(end_reason=EndReason.CANCELLED, message=request.reason, decided_by=SUPERVISOR)
                )
        status = self._record(state, request.reason)
        if self._supervisor is not None:
            with suppress(StoreError):
                self.job.forget_stop_request(self._supervisor.name)
        return status

    def _stop_attempt(self, view: AttemptView, request: StopRequest, wait_seconds: float) -> None:
        attempt = self.job.attempt(view.number)
        self._persist(lambda: attempt.request_stop(request))
        if not view.claimed:
            outcome = self._outcome(Declare(request.end_reason, request.reason))
            self._retire(view, self._persist(lambda: attempt.end(outcome)))
            return
        deadline = self.clock() + wait_seconds
        while (ended := self._persist(attempt.read_outcome)) is None:
            if self.clock() >= deadline or self._hint(view).says is PoolSays.ENDED:
                return
            self.sleep(0.5)
        self._retire(view, ended)

    def _to_the_end(self) -> JobStatus:
        while True:
            snapshot = self._persist(self._look)
            if snapshot.live is not None:
                self._watch(snapshot.live)
                continue
            decision = self._decide(snapshot)
            if decision.state is not JobState.RUNNING:
                return self._end(decision)
            self._pause(decision.pause_seconds * random.uniform(0.5, 1.5))
            self._launch(snapshot.next_number, decision)

    def _look(self) -> JobSnapshot:
        """Raises `FencedOut` when another supervisor has taken over, `_Stop` when a person wants the job to stop."""
        snapshot = self._reader.read()
        if self._supervisor is not None and snapshot.newest_supervisor > self._supervisor.number:
            self.job.require_supervisor(self._supervisor)
        self._live = snapshot.live
        for warning in snapshot.warnings:
            if warning not in self._warned:
                self._warned.add(warning)
                self._notify(f"goes on without a damaged record: {warning}")
        if snapshot.stop_request is not None:
            raise _Stop(snapshot.stop_request)
        return snapshot

    def _count_attempts_before_restart(self) -> int:
        """How many attempts no longer count: those of a job that had ended, and that a person has started again."""
        try:
            status = self._persist(lambda: status_of(self.job))
        except RecordDamaged as error:
            self._notify(f"goes on without a damaged record: {error}")
            return 0
        if status is None or status.state in _ATTEMPTS_STILL_COUNT:
            return status.attempts_before_restart if status else 0
        if status.state is JobState.PAUSED and self.stop_at_step is not None:
            return status.attempts_before_restart  # it goes on to its next rung, if it is not there already
        return len(self._persist(self.job.attempts))

    # Deciding

    def _decide(self, snapshot: JobSnapshot) -> Decision:
        counted = snapshot.attempts[self._attempts_before_restart :]
        ended = [view.ended for view in counted if view.ended is not None]
        last = ended[-1].outcome if ended else None
        wanted = self.stop_at_step or 0
        if last and last.end_reason is EndReason.PAUSED and last.committed_step < wanted:
            return Decision(JobState.RUNNING, f"goes on to step {wanted}")
        decision = decide(
            History(
                ended=[entry for entry in ended if not (entry.missed and entry.pool in self._waits_for)],
                limits=snapshot.limits,
                pools=[place.pool for place in self.placements],
                attempts=len(snapshot.attempts),
                spent_usd=snapshot.spent_usd,
                age_hours=self._age_hours(snapshot),
                over_budget=self.over_budget(),
                timeouts=self.timeouts,
            )
        )
        if self.placement_policy is None or decision.state is not JobState.RUNNING:
            return decision
        placed = self.placement_policy.next(counted, decision)
        if not ended or not ended[-1].missed:
            return placed
        # Not at once, lest a pool that refuses be asked without end.
        pool = self.placements[placed.placement].pool
        refused = same_refusals(counted, pool, ended[-1].outcome.message)
        delay = retry_delay(max(1, refused), self.timeouts)
        return replace(placed, pause_seconds=max(placed.pause_seconds, delay))

    def _age_hours(self, snapshot: JobSnapshot) -> float:
        return (self.wall_clock() - snapshot.created_at).total_seconds() / 3600

    @property
    def _number(self) -> int:
        return self._supervisor.number if self._supervisor else 0

    @property
    def _waits_for(self) -> frozenset[str]:
        return self.placement_policy.waits_for if self.placement_policy else frozenset()

    # Launching

    def _pause(self, seconds: float) -> None:
        """Sleep, but not through another supervisor's start or a person's request to stop."""
        end = self.clock() + seconds
        while (left := end - self.clock()) > 0:
            self._sleep(min(left, 1.0))
            self._persist(self._look)

    def _launch(self, number: int, decision: Decision) -> None:
        placement = self.placements[decision.placement]
        launch = Launch(
            number=number,
            pool=placement.pool,
            instance=placement.instance,
            usd_per_hour=placement.usd_per_hour,
            mtbf_seconds=placement.mtbf_seconds,
            reason=decision.reason,
            stop_at_step=self.stop_at_step,
            decided_at=self.wall_clock(),
            decided_by=f"supervisor {self._number}",
        )
        standing = self._persist(lambda: self.job.decide(launch))
        self._notify(f"attempt {number} goes to {standing.pool}: {standing.reason}")

    def _start(self, view: AttemptView) -> None:
        """Launch it, maybe once more: idempotent, since the previous supervisor may have died in mid-launch."""
        assert view.launch is not None  # of a live attempt, by `SnapshotReader`
        try:
            self.launcher.launch(self.job, view.launch)
        except CrucibleError as error:
            if view.claimed:
                return  # it runs already; only the pool's hints about it are missing
            snapshot = self._persist(self._look)
            if snapshot.live is None or snapshot.live.claimed:
                return
            same = same_refusals(snapshot.attempts[:-1], view.pool, str(error))
            self._declare(view, refusal(str(error), same))

    # Watching

    def _watch(self, view: AttemptView) -> None:
        """Until the attempt has an outcome, its own or one that is given to it here."""
        self._start(view)
        silence = _Silence(self.clock)
        self._review_at = self.clock() + self.timeouts.placement_review
        while (snapshot := self._persist(self._look, silence.restart)).live is not None:
            step = self._judge(snapshot, snapshot.live, silence)
            if isinstance(step, Declare):
                if step.end_reason is not EndReason.LOST or self._store_takes_writes(silence):
                    self._declare(snapshot.live, step)
                continue
            if isinstance(step, AskToStop) and view.number not in self._asked_to_stop:
                self._ask_to_stop(snapshot.live, step.request)
            self._sleep(self.timeouts.poll)
        over = snapshot.attempts[-1]
        assert over.ended is not None
        outcome = over.ended.outcome
        self._retire(over, outcome)
        self._notify(f"attempt {over.number} {outcome.label} at step {outcome.committed_step}: {outcome.message}")

    def _store_takes_writes(self, silence: _Silence) -> bool:
        """Whether silence means anything: a healthy attempt writes no heartbeat to a store that is full but readable.

        Waits until the store takes a write; False when it did not at first, and the silence counts anew.
        """
        refused = False

        def wait() -> None:
            nonlocal refused
            refused = True
            silence.restart()

        self._persist(lambda: self.job.store.write(_WRITE_TEST, bytes(2048)), wait)
        self.job.store.delete(_WRITE_TEST)
        if refused:
            silence.restart()
        return not refused

    def _judge(self, snapshot: JobSnapshot, live: AttemptView, silence: _Silence) -> Step:
        """What to do about the attempt; its pool is asked only where that matters."""
        # Before anything that may take its time: a pool that is slow to answer is no silence of the attempt.
        seconds = silence.seconds(live)
        self._show(lambda: self.listener.watched(self.job, live.heartbeat))
        seen = Observation(
            silent_seconds=seconds,
            leave=self._why_leave(snapshot),
            over_limit=self._over_limit(snapshot),
            waited_for=live.pool in self._waits_for,
        )
        step = judge(live, seen, self.timeouts)
        if not isinstance(step, AskPool):
            return step
        hint = self._hint(live)
        if hint.queued and hint.message not in self._warned:
            self._warned.add(hint.message)
            self._notify(f"attempt {live.number} {hint.message}")
        same = same_refusals(snapshot.attempts[:-1], live.pool, hint.message)
        return judge(live, replace(seen, hint=hint, same_refusals=same), self.timeouts)

    def _why_leave(self, snapshot: JobSnapshot) -> str | None:
        """The placement policy's answer, asked every so often."""
        if self.placement_policy is None or self.clock() < self._review_at:
            return None
        self._review_at = self.clock() + self.timeouts.placement_review
        return self.placement_policy.why_leave(snapshot.attempts[self._attempts_before_restart :])

    def _over_limit(self, snapshot: JobSnapshot) -> str | None:
        """The job's time, by this machine's clock (the attempt's own may be wrong), or a shared budget is used up."""
        hours = snapshot.limits.max_hours
        if hours and self._age_hours(snapshot) >= hours:
            return f"the job's {hours:g} hours are over"
        if self.clock() < self._budget_look_at:
            return None
        self._budget_look_at = self.clock() + self.timeouts.placement_review
        return self.over_budget()

    def _ask_to_stop(self, view: AttemptView, request: StopRequest) -> None:
        self._persist(lambda: self.job.attempt(view.number).request_stop(request))
        self._asked_to_stop.add(view.number)
        self._notify(f"attempt {view.number} is asked to save and stop: {request.reason}")

    def _declare(self, view: AttemptView, declared: Declare) -> None:
        limits = self._persist(self.job.read_limits) if declared.end_reason is EndReason.BUDGET else None
        outcome = self._outcome(declared, view).model_copy(update={"limits": limits})
        self._persist(lambda: self.job.attempt(view.number).end(outcome))

    def _outcome(self, declared: Declare, view: AttemptView | None = None) -> Outcome:
        """With what is known of the attempt's progress and cost; the newest commit counts, heartbeats or not."""
        newest = next(iter(self._persist(lambda: Checkpoints(self.job).list())), None)
        beat = view.heartbeat if view else None
        committed = newest.step if newest else 0
        return Outcome(
            end_reason=declared.end_reason,
            message=declared.message,
            decided_by=SUPERVISOR,
            ended_at=self.wall_clock(),
            committed_step=committed,
            step=max(committed, beat.step if beat else 0),
            seconds=beat.seconds if beat else 0.0,
            cost_usd=beat.cost_usd if beat else 0.0,
            first_step_after_seconds=beat.first_step_after_seconds if beat else None,
        )

    def _hint(self, view: AttemptView) -> Hint:
        return self.launcher.hint(self.job, view.launch) if view.launch else Hint(PoolSays.UNKNOWN)

    def _retire(self, view: AttemptView, outcome: Outcome) -> None:
        if view.launch is not None:
            self.launcher.retire(self.job, view.launch, outcome)

    # The end

    def _end(self, decision: Decision) -> JobStatus:
        status = self._record(decision.state, decision.reason)
        self._notify(f"job {decision.state}: {decision.reason}")
        return status

    def _fail(self, error: StoreError) -> JobStatus:
        """The job cannot go on with these records: an attempt that runs is asked to save, and nothing is waited for."""
        self._stopping = True
        reason = f"{error}; then `crucible jobs continue {self.job.job_id}`"
        try:
            attempts = self._persist(self.job.attempts)
            if attempts:
                request = StopRequest(end_reason=EndReason.INTERRUPTED, reason=reason)
                self._persist(lambda: attempts[-1].request_stop(request))
        except StoreError as trouble:
            self._notify(f"the attempt could not be asked to stop: {trouble}")
        return self._end(Decision(JobState.FAILED, reason))

    def _record(self, state: JobState, reason: str) -> JobStatus:
        status = JobStatus(
            state=state,
            reason=reason,
            supervisor=self._number,
            flow_run_id=self.flow_run_id,
            attempts_before_restart=self._attempts_before_restart,
        )
        try:
            self._persist(lambda: self.job.store.write_model("status.json", status))
        except StoreError as error:
            if state is JobState.RUNNING:
                raise
            self._notify(f"that the job is {state} could not be recorded: {error}")
        return status

    # Small things

    def _sleep(self, seconds: float) -> None:
        """Raises `_Stop` when a person wants the job to stop."""
        self.sleep(seconds)
        if not self._stopping and (request := self.stop_requested()) is not None:
            raise _Stop(request)

    def _persist(self, action: Callable[[], T], on_failure: Callable[[], None] = lambda: None) -> T:
        """Do it, again and again while the store is away: without records nothing can be decided.

        Raises `_Stop` when a person wants the job to stop meanwhile; once it stops, a store that is away is given up.
        """
        reported = False

        def report(error: StoreError) -> None:
            nonlocal reported
            on_failure()
            if not reported and not self._stopping:
                self._notify(f"the store does not answer, waiting: {error}")
                reported = True

        def pause(seconds: float) -> bool:
            if self._stopping:
                self._give_up_at = self._give_up_at or self.clock() + GIVE_UP_SECONDS
                if self.clock() >= self._give_up_at:
                    return True
            self._sleep(min(seconds, 1.0))
            return False

        return persist(action, pause, on_failure=report)

    def _notify(self, message: str) -> None:
        self._show(lambda: self.listener.changed(self.job, message))

    def _show(self, notify: Callable[[], None]) -> None:
        """Whatever the listener raises, the job goes on without being seen."""
        try:
            notify()
        except Exception:
            self.logger.exception("job %s: what happens cannot be shown", self.job.job_id)


_WRITE_TEST = "write-test"
"""An object of a heartbeat's size, to see whether the store takes it."""


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
