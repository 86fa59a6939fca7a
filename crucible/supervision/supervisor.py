"""Supervision: launches a job's attempts, watches their records, and does what the retry policy says.

Everything it knows is in the job's records, so a second supervisor carries on where the first was killed. What the pool
says of a run is only a hint: an attempt is over when its outcome says so, or when its heartbeat has stood still for
`LOST_SECONDS` by the supervisor's own clock while the store could be read.

Several supervisors of one job do no harm: the newest counts (`Job.supervise`), every decision is a create-only record
that the others find, and launching is idempotent.
"""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime
from enum import StrEnum
from typing import Protocol, TypeVar

from crucible.checkpoints.commits import Checkpoints
from crucible.errors import CrucibleError, ObjectMissing, StoreError
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import EndReason, Heartbeat, Launch, Outcome, StopRequest, now
from crucible.jobs.status import JobState, JobStatus, status_of
from crucible.supervision.placement_policy import AttemptView, PlacementPolicy
from crucible.supervision.retry_policy import (
    LOOK_SECONDS,
    SUPERVISOR,
    Decision,
    FinishedAttempt,
    Placement,
    Timeouts,
    decide,
    pause_seconds,
)

T = TypeVar("T")

logger = logging.getLogger(__name__)

_STILL_COUNT = {JobState.RUNNING, JobState.COMPLETED, JobState.BUDGET_STOP}
"""After a budget stop what counts is whether the limits were raised, not that someone started the job again."""


class PoolSays(StrEnum):
    """What the pool believes of a run."""

    WAITING = "waiting"
    ALIVE = "alive"
    ENDED = "ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Hint:
    """The pool's belief, with its words; never the truth by itself."""

    says: PoolSays
    message: str = ""
    cancelled: bool = False
    """A person cancelled the run there."""
    permanent: bool = False
    """What keeps the run from starting will not go away by itself: trying again cannot help."""


class Launcher(Protocol):
    """Brings attempts to life on pools."""

    def launch(self, job: Job, launch: Launch) -> None:
        """Start the attempt; doing it again must find the same run. Raises `CrucibleError` when it cannot."""

    def hint(self, job: Job, launch: Launch) -> Hint:
        """What the pool believes; must not raise."""

    def retire(self, job: Job, launch: Launch, outcome: Outcome) -> None:
        """See to it that the run is over for the pool as well, and that nothing of it keeps running or costing."""


class Listener(Protocol):
    """Hears of changes, for people to see."""

    def changed(self, job: Job, message: str) -> None:
        """Something happened: an attempt was launched, ended, moved."""

    def watched(self, job: Job, heartbeat: Heartbeat | None) -> None:
        """A look was taken; called every few seconds."""


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
    cancelled: Callable[[], bool] = lambda: False
    """Asked between two looks: whether a person has cancelled the job. A signal may say so as well, see `cancel`."""
    logger: logging.Logger | logging.LoggerAdapter[logging.Logger] = logger
    """Where an error of the listener is told."""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], datetime] = now
    """For the records; how long something takes is told by `clock`."""
    _over: dict[int, AttemptView] = field(default_factory=dict, init=False, repr=False)
    """Attempts that are over, read once: their records do not change any more."""

    def run(self) -> JobStatus:
        """Launch and watch attempts until the job ends; the status returned is also on record.

        Raises `FencedOut` when another supervisor has taken over.
        """
        self._supervisor = self._unless_store_fails(lambda: self.job.supervise(self.flow_run_id))
        self._attempts_before_restart = self._attempts_before_this_start()
        self._record(JobState.RUNNING, "supervised")
        try:
            return self._to_the_end()
        except _Cancelled:
            return self.cancel("cancelled by a person", self.timeouts.lost)

    def _to_the_end(self) -> JobStatus:
        while True:
            self._unless_store_fails(lambda: self.job.require_supervisor(self._supervisor))
            attempts = self._unless_store_fails(self.job.attempts)
            if attempts and self._unless_store_fails(attempts[-1].read_outcome) is None:
                self._watch(attempts[-1])
                continue
            decision = self._unless_store_fails(self._decide)
            if decision.state is not JobState.RUNNING:
                return self._end(decision)
            self._pause(decision.pause_seconds * random.uniform(0.5, 1.5))
            self._launch(len(attempts) + 1, decision)

    def _attempts_before_this_start(self) -> int:
        """How many attempts no longer count: those of a job that had ended, and that a person has now started again."""
        status = self._unless_store_fails(lambda: status_of(self.job))
        if status is None or status.state in _STILL_COUNT:
            return status.attempts_before_restart if status else 0
        if status.state is JobState.PAUSED and self.stop_at_step is not None:
            return status.attempts_before_restart  # it goes on to its next rung, if it is not there already
        return len(self._unless_store_fails(self.job.attempts))

    def _pause(self, seconds: float) -> None:
        """Sleep, but not through another supervisor's start."""
        end = self.clock() + seconds
        while (left := end - self.clock()) > 0:
            self._sleep(min(left, LOOK_SECONDS))
            self._unless_store_fails(lambda: self.job.require_supervisor(self._supervisor))

    def cancel(self, reason: str, patience_seconds: float) -> JobStatus:
        """End the job for now: ask the running attempt to save and stop, and wait that long for it at most."""
        attempts = self.job.attempts()
        if attempts and attempts[-1].read_outcome() is None:
            attempts[-1].request_stop(StopRequest(end_reason=EndReason.CANCELLED, reason=reason))
            deadline = self.clock() + patience_seconds
            while self.clock() < deadline and attempts[-1].read_outcome() is None:
                self.sleep(0.5)
        return self._record(JobState.CANCELLED, reason)

    def _sleep(self, seconds: float) -> None:
        """Raises `_Cancelled` where a person has cancelled the job meanwhile."""
        self.sleep(seconds)
        if self.cancelled():
            raise _Cancelled

    def _decide(self) -> Decision:
        attempts = self.job.attempts()
        tries = [self._try(attempt) for attempt in attempts]
        ended = [entry.ended for entry in tries[self._attempts_before_restart :] if entry.ended is not None]
        counted = [entry for entry in ended if not (entry.missed and entry.pool in self._waits_for)]
        last = ended[-1].outcome if ended else None
        wanted = self.stop_at_step or 0
        if last and last.end_reason is EndReason.PAUSED and last.committed_step < wanted:
            return Decision(JobState.RUNNING, f"goes on to step {wanted}")
        age = self.wall_clock() - self.job.read_spec().created_at
        decision = decide(
            counted,
            self.job.read_limits(),
            [place.pool for place in self.placements],
            attempts=len(attempts) - len(ended) + len(counted),
            spent_usd=self.job.cost_usd(),
            age_hours=age.total_seconds() / 3600,
            timeouts=self.timeouts,
        )
        if self.placement_policy is None or decision.state is not JobState.RUNNING:
            return decision
        if ended and ended[-1].missed:  # not at once, lest a pool that refuses be asked without end
            decision = replace(decision, pause_seconds=max(decision.pause_seconds, pause_seconds(1, self.timeouts)))
        return self.placement_policy.next(tries[self._attempts_before_restart :], decision)

    @property
    def _waits_for(self) -> frozenset[str]:
        return self.placement_policy.waits_for if self.placement_policy else frozenset()

    def _try(self, attempt: Attempt, heartbeat: Heartbeat | None = None, claimed: bool = False) -> AttemptView:
        if attempt.number in self._over:
            return self._over[attempt.number]
        launch, start, outcome = attempt.read_launch(), attempt.read_start(), attempt.read_outcome()
        assert launch is not None
        ended = (
            FinishedAttempt(outcome, start.step if start else outcome.committed_step, launch.pool) if outcome else None
        )
        found = AttemptView(
            pool=launch.pool,
            launched_at=launch.decided_at,
            start_step=start.step if start else 0,
            claimed=claimed,
            heartbeat=heartbeat,
            ended=ended,
        )
        if ended is not None:
            self._over[attempt.number] = found
        return found

    def _launch(self, number: int, decision: Decision) -> None:
        placement = self.placements[decision.placement]
        launch = self._unless_store_fails(
            lambda: self.job.decide(
                Launch(
                    number=number,
                    pool=placement.pool,
                    instance=placement.instance,
                    usd_per_hour=placement.usd_per_hour,
                    mtbf_seconds=placement.mtbf_seconds,
                    reason=decision.reason,
                    stop_at_step=self.stop_at_step,
                    decided_at=self.wall_clock(),
                    decided_by=f"supervisor {self._supervisor.number}",
                )
            )
        )
        self._tell(f"attempt {number} goes to {launch.pool}: {launch.reason}")

    def _watch(self, attempt: Attempt) -> None:
        """Until the attempt has an outcome, its own or one that is given to it here."""
        launch = self._unless_store_fails(attempt.read_launch)
        assert launch is not None
        self._bring_to_life(attempt, launch)
        silence = _Silence(self.clock)
        self._review_placement_at = self.clock() + self.timeouts.placement_review
        while (outcome := self._look(attempt, launch, silence)) is None:
            self._sleep(self.timeouts.poll)
        self._unless_store_fails(lambda: self.job.require_supervisor(self._supervisor))
        self.launcher.retire(self.job, launch, outcome)
        self._tell(
            f"attempt {attempt.number} {outcome.end_reason.words} at step {outcome.committed_step}: {outcome.message}"
        )

    def _bring_to_life(self, attempt: Attempt, launch: Launch) -> None:
        """Launch it, maybe once more: whoever finds a decision need not know how far the one who made it got."""
        try:
            self.launcher.launch(self.job, launch)
        except CrucibleError as error:
            if self._unless_store_fails(attempt.read_claim) is not None:
                return  # it runs already; only the pool's hints about it are missing
            outcome = Outcome(end_reason=EndReason.NOT_STARTED, message=str(error), decided_by=SUPERVISOR)
            self._unless_store_fails(lambda: attempt.end(self._with_progress(outcome)))

    def _look(self, attempt: Attempt, launch: Launch, silence: _Silence) -> Outcome | None:
        try:
            self.job.require_supervisor(self._supervisor)
            if (outcome := attempt.read_outcome()) is not None:
                return outcome
            heartbeat = attempt.read_heartbeat()
            claimed = heartbeat is not None or attempt.read_claim() is not None
        except StoreError:
            silence.restart()  # what cannot be read is no silence
            return None
        # Before anything that may take its time: a pool that is slow to answer is no silence of the attempt.
        seconds = silence.seconds(heartbeat.sequence if heartbeat else -1, claimed)
        self._show(lambda: self.listener.watched(self.job, heartbeat))
        leave = self._why_leave(attempt, heartbeat, claimed)
        if not claimed:
            return self._unclaimed(attempt, launch, self.launcher.hint(self.job, launch), seconds, leave)
        if leave is not None:
            self._ask_to_leave(attempt, leave)
        if seconds <= min(self.timeouts.ended_and_silent, self.timeouts.lost):
            return None  # it speaks for itself, so the pool need not be asked every second
        hint = self.launcher.hint(self.job, launch)
        ended = hint.says is PoolSays.ENDED and seconds > self.timeouts.ended_and_silent
        if not ended and seconds <= self.timeouts.lost:
            return None
        verdict = Outcome(
            end_reason=EndReason.CANCELLED if hint.cancelled else EndReason.LOST,
            message=f"no sign of life for {seconds:.0f} s"
            + (f"; the pool said: {hint.message}" if hint.message else ""),
            decided_by=SUPERVISOR,
            ended_at=self.wall_clock(),
        )
        return self._unless_store_fails(lambda: attempt.end(self._with_progress(verdict, heartbeat, launch)))

    def _why_leave(self, attempt: Attempt, heartbeat: Heartbeat | None, claimed: bool) -> str | None:
        """The course's answer, asked every so often."""
        if self.placement_policy is None or self.clock() < self._review_placement_at:
            return None
        self._review_placement_at = self.clock() + self.timeouts.placement_review
        try:
            before = [
                self._try(other)
                for other in self.job.attempts()[self._attempts_before_restart :]
                if other.number < attempt.number
            ]
            return self.placement_policy.why_leave([*before, self._try(attempt, heartbeat, claimed)])
        except StoreError:
            return None  # later, then

    def _ask_to_leave(self, attempt: Attempt, reason: str) -> None:
        if self._unless_store_fails(attempt.read_stop_request) is None:
            request = StopRequest(end_reason=EndReason.INTERRUPTED, reason=reason)
            self._unless_store_fails(lambda: attempt.request_stop(request))
            self._tell(f"attempt {attempt.number} is asked to save and stop: {reason}")

    def _unclaimed(
        self, attempt: Attempt, launch: Launch, hint: Hint, seconds: float, leave: str | None
    ) -> Outcome | None:
        """A launched attempt that no machine has taken up yet."""
        if hint.says is PoolSays.ENDED and seconds > 2.0:
            reason = EndReason.FAILED if hint.permanent else EndReason.NOT_STARTED
            reason = EndReason.CANCELLED if hint.cancelled else reason
            message = hint.message or "the run ended before a machine took it up"
        elif leave is not None:
            reason, message = EndReason.NOT_STARTED, leave
        elif seconds > self.timeouts.start and launch.pool not in self._waits_for:
            reason, message = EndReason.NOT_STARTED, f"no machine took it up within {self.timeouts.start:.0f} s"
        else:
            return None
        verdict = Outcome(end_reason=reason, message=message, decided_by=SUPERVISOR, ended_at=self.wall_clock())
        return self._unless_store_fails(lambda: attempt.end(self._with_progress(verdict)))

    def _with_progress(
        self, verdict: Outcome, heartbeat: Heartbeat | None = None, launch: Launch | None = None
    ) -> Outcome:
        """The verdict with what is known of the attempt's progress and cost; the newest commit counts, beats or not."""
        newest = next(iter(Checkpoints(self.job).list()), None)
        verdict.committed_step = newest.step if newest else 0
        verdict.step = max(verdict.committed_step, heartbeat.step if heartbeat else 0)
        if heartbeat and launch:
            verdict.seconds = heartbeat.seconds
            verdict.cost_usd = heartbeat.cost_usd
            verdict.first_step_after_seconds = heartbeat.first_step_after_seconds
        return verdict

    def _end(self, decision: Decision) -> JobStatus:
        status = self._record(decision.state, decision.reason)
        self._tell(f"job {decision.state}: {decision.reason}")
        return status

    def _record(self, state: JobState, reason: str) -> JobStatus:
        status = JobStatus(
            state=state,
            reason=reason,
            supervisor=self._supervisor.number,
            flow_run_id=self.flow_run_id,
            attempts_before_restart=self._attempts_before_restart,
        )
        self._unless_store_fails(lambda: self.job.store.write_json("status.json", status.model_dump(mode="json")))
        return status

    def _tell(self, message: str) -> None:
        self._show(lambda: self.listener.changed(self.job, message))

    def _show(self, tell: Callable[[], None]) -> None:
        """Whatever the listener raises, the job goes on without being seen."""
        try:
            tell()
        except Exception:
            self.logger.exception("job %s: what happens cannot be shown", self.job.job_id)

    def _unless_store_fails(self, action: Callable[[], T]) -> T:
        """Do it; while the store cannot be reached, say so and try again: without records nothing can be decided."""
        told = False
        while True:
            try:
                return action()
            except ObjectMissing:
                raise
            except StoreError as error:
                if not told:
                    self._tell(f"the store does not answer, waiting: {error}")
                    told = True
                self.sleep(2.0)


class _Cancelled(Exception):
    """The job is to end for now."""


class _Silence:
    """How long a sequence number has stood still, by this process's clock."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._last: tuple[int, bool] | None = None
        self._since = clock()

    def seconds(self, sequence: int, claimed: bool) -> float:
        if (sequence, claimed) != self._last:
            self._last, self._since = (sequence, claimed), self._clock()
        return self._clock() - self._since

    def restart(self) -> None:
        self._since = self._clock()
