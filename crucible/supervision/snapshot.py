"""One look at a job: a typed snapshot of its records. What follows from it is decided by pure functions.

A damaged record costs its own job at most. Where the job can go on without it (a heartbeat, a claim's text, the
launch of an attempt that is over), the snapshot says so in `warnings`; otherwise reading raises `RecordDamaged`, which
names the object, and the supervisor ends the job with that message.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from crucible.errors import RecordDamaged
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import EndReason, Heartbeat, Launch, Limits, Outcome, StopRequest

T = TypeVar("T")

SUPERVISOR = "supervisor"
"""Who decided, in the records of what the supervisor decided."""
ENOUGH_REPORTS = 20
"""Speed is not judged by fewer: one more or less would matter."""


@dataclass(frozen=True)
class FinishedAttempt:
    """One attempt that is over, as far as deciding needs it."""

    outcome: Outcome
    start_step: int
    pool: str = ""

    @property
    def own_interval_seconds(self) -> float | None:
        """Between the saves of a script that saves when it likes; None before it was measured."""
        return self.outcome.saving.get("own_interval_seconds")

    @property
    def missed(self) -> bool:
        """No machine ever took it up."""
        return self.outcome.end_reason is EndReason.NOT_STARTED

    @property
    def refused(self) -> bool:
        """The pool will not start it, now or later; the workload never ran."""
        return self.outcome.end_reason is EndReason.FAILED and self.outcome.decided_by == SUPERVISOR

    @property
    def in_vain(self) -> bool:
        return self.missed or self.refused

    @property
    def unfit(self) -> bool:
        """Its machine was not fit to train."""
        return self.outcome.end_reason is EndReason.UNFIT

    @property
    def taken_away(self) -> bool:
        """The machine went, by the pool's doing."""
        return self.outcome.end_reason in (EndReason.INTERRUPTED, EndReason.LOST) and not self.moved

    @property
    def moved(self) -> bool:
        """It saved and stopped because the supervisor wanted it elsewhere."""
        return any(notification.source == SUPERVISOR for notification in self.outcome.notifications)


@dataclass(frozen=True)
class AttemptView:
    """One attempt, as its records show it."""

    pool: str
    launched_at: datetime
    start_step: int = 0
    claimed: bool = False
    """A machine has taken it up."""
    heartbeat: Heartbeat | None = None
    """Of one that runs."""
    ended: FinishedAttempt | None = None
    number: int = 0
    launch: Launch | None = None
    """None where the record is gone and the attempt is over."""
    stop_request: StopRequest | None = None
    """Of one that no machine has taken up yet: whoever runs reads it itself."""

    @property
    def progress(self) -> Outcome | Heartbeat | None:
        """The record that says how far it got and how long it took."""
        return self.ended.outcome if self.ended else self.heartbeat

    def seconds_per_step(self, report_steps: int = 1) -> float | None:
        """From its first report to its last, evaluations and saves included; None before enough has been reported.

        The workload reports every `report_steps` steps, so that its first report may be of so many steps.
        """
        record = self.progress
        if record is None or record.first_step_after_seconds is None:
            return None
        steps = record.step - self.start_step - report_steps
        seconds = record.seconds - record.first_step_after_seconds
        return seconds / steps if steps >= ENOUGH_REPORTS * report_steps and seconds > 0 else None


@dataclass(frozen=True)
class JobSnapshot:
    """A job's records at one moment."""

    newest_supervisor: int
    created_at: datetime
    limits: Limits
    attempts: tuple[AttemptView, ...] = ()
    stages_usd: float = 0.0
    """What the stages before the training have cost."""
    stop_request: StopRequest | None = None
    """A person's request to stop the job, whatever it is doing."""
    warnings: tuple[str, ...] = ()
    """Damaged records that the job goes on without."""

    @property
    def live(self) -> AttemptView | None:
        """The attempt that is not over, if there is one."""
        return self.attempts[-1] if self.attempts and self.attempts[-1].ended is None else None

    @property
    def next_number(self) -> int:
        return self.attempts[-1].number + 1 if self.attempts else 1

    @property
    def spent_usd(self) -> float:
        """What stages and attempts have cost so far: final figures where known, else the last heartbeat's."""
        return self.stages_usd + sum(view.progress.cost_usd for view in self.attempts if view.progress)


@dataclass
class SnapshotReader:
    """Reads snapshots of one job. Kept for the life of a supervisor, it reads what cannot change only once.

    While an attempt is live, what changes rarely (limits, a person's request to stop, who supervises) is read every
    `refresh_seconds`: it was two thirds of the CPU that a supervisor took from a training beside it.
    """

    job: Job
    clock: Callable[[], float]
    refresh_seconds: float = 4.0
    _finished: dict[int, AttemptView] = field(default_factory=dict, init=False)
    _live: AttemptView | None = field(default=None, init=False)
    _created_at: datetime | None = field(default=None, init=False)
    _stages_usd: float = field(default=0.0, init=False)
    _slow: _SlowRecords | None = field(default=None, init=False)

    def read(self) -> JobSnapshot:
        """Look now. Raises `RecordDamaged` where the job cannot go on, and what the store raises."""
        warnings: list[str] = []
        if self._created_at is None:
            self._stages_usd = (
                _unless_damaged(self.job.stages_usd, warnings) or 0.0
            )  # no stage runs beside the attempts
            self._created_at = self.job.read_spec().created_at
        attempts = tuple(self._attempts(warnings))
        slow = self._read_slow()
        return JobSnapshot(
            newest_supervisor=slow.newest_supervisor,
            created_at=self._created_at,
            limits=slow.limits,
            attempts=attempts,
            stages_usd=self._stages_usd,
            stop_request=slow.stop_request,
            warnings=tuple(warnings),
        )

    def _attempts(self, warnings: list[str]) -> list[AttemptView]:
        if self._live is not None:  # only this supervisor launches: nothing new comes before this one is over
            numbers = [*self._finished, self._live.number]
        else:
            numbers = [attempt.number for attempt in self.job.attempts()]
        found = [self._finished.get(number) or self._view(self.job.attempt(number), warnings) for number in numbers]
        views = [view for view in found if view is not None]
        self._finished |= {view.number: view for view in views if view.ended}
        self._live = views[-1] if views and views[-1].ended is None else None
        return views

    def _view(self, attempt: Attempt, warnings: list[str]) -> AttemptView | None:
        before = self._live if self._live and self._live.number == attempt.number else None
        outcome = attempt.read_outcome()
        view = before or self._launched(attempt, outcome, warnings)
        if view is None:
            return None
        start = None if view.start_step else _unless_damaged(attempt.read_start, warnings)
        view = replace(view, start_step=start.step if start else view.start_step)
        if outcome is not None:
            start_step = view.start_step if view.start_step or start else outcome.committed_step
            ended = FinishedAttempt(outcome, start_step, view.pool)
            return replace(view, heartbeat=None, stop_request=None, ended=ended)
        heartbeat = _unless_damaged(attempt.read_heartbeat, warnings)
        claimed = view.claimed or heartbeat is not None or _exists(attempt.read_claim)
        stop_request = None if claimed else _unless_damaged(attempt.read_stop_request, warnings)
        return replace(view, heartbeat=heartbeat, claimed=claimed, stop_request=stop_request)

    def _launched(self, attempt: Attempt, outcome: Outcome | None, warnings: list[str]) -> AttemptView | None:
        """What was decided about the attempt; one that is over can do without the record."""
        if outcome is None:
            launch = attempt.read_launch()
            if launch is None and not (_exists(attempt.read_claim) or _exists(attempt.read_heartbeat)):
                return None  # a folder without a decision
            if launch is None:
                where = f"{self.job.store.uri}/attempts/{attempt.number:04d}"
                raise RecordDamaged(
                    f"{where}/launch.json is missing, but {where} has other records: restore it, or remove that folder "
                    f"if nothing runs as attempt {attempt.number}"
                )
        else:
            launch = _unless_damaged(attempt.read_launch, warnings)
        if launch is None:
            return AttemptView(pool="", launched_at=self._created_at or datetime.min, number=attempt.number)
        return AttemptView(launch.pool, launch.decided_at, number=attempt.number, launch=launch)

    def _read_slow(self) -> _SlowRecords:
        if self._slow is None or self._live is None or self.clock() >= self._slow.again_at:
            newest = self.job.read_newest_supervisor()
            self._slow = _SlowRecords(
                again_at=self.clock() + self.refresh_seconds,
                newest_supervisor=newest.number if newest else 0,
                limits=self.job.read_limits(),
                stop_request=self.job.read_stop_request(newest.name) if newest else None,
            )
        return self._slow


@dataclass(frozen=True)
class _SlowRecords:
    """What changes rarely."""

    again_at: float
    """When to read them again, by the reader's clock."""
    newest_supervisor: int
    limits: Limits
    stop_request: StopRequest | None


def _unless_damaged(read: Callable[[], T | None], warnings: list[str]) -> T | None:
    try:
        return read()
    except RecordDamaged as error:
        warnings.append(str(error))
        return None


def _exists(read: Callable[[], object | None]) -> bool:
    """Whether the record is there, readable or not."""
    try:
        return read() is not None
    except RecordDamaged:
        return True
