"""Carrying out a sweep: trials as tasks, each under a supervisor of its own, until nothing remains or a limit is met.

The planner says what may be trained; this keeps as many trials going as the sweep allows, reads each result from the
records, and asks again. It keeps nothing that is not on record: killed and started again, it reads the records and
makes the same decisions.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import datetime, timedelta

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.tasks import Task

from crucible.config import TrainConfig
from crucible.errors import FencedOut, ObjectMissing, ServiceError, StoreError
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, Limits, StopRequest, now
from crucible.jobs.status import JobState, JobStatus
from crucible.supervision.launcher import Launcher
from crucible.supervision.retry_policy import Placement, Timeouts
from crucible.supervision.supervisor import Supervision
from crucible.sweeps.planner import Planner
from crucible.sweeps.records import SweepLimits, SweepStatus, TrialRecord
from crucible.sweeps.schedules import Piece
from crucible.sweeps.sweep import Sweep
from crucible.sweeps.trials import Trial
from tasks.sweep_reporting import SweepBoard
from tasks.trials import Halt, Halting, SweepHalted, TrialListener

LOOK_SECONDS = 1.0
STORE_SECONDS = 2.0
"""Before a store that failed is asked again."""
SAVE_SECONDS = 20.0
"""What a trial that is asked to stop may still take, and cost."""
FRUITLESS_ATTEMPTS = 4
"""In a row, before a trial counts as failed: the sweep's own machine may well be killed more often than a job's."""
LEAVE_SECONDS = 22.0
"""Prefect's process worker waits 30 s between SIGTERM and SIGKILL."""


@dataclass
class SweepRun:
    """Carries out one sweep in the flow run that calls it: `SweepRun(sweep, launcher, places).run()`."""

    sweep: Sweep
    make_launcher: Callable[[Job], Launcher]
    places: Callable[[TrainConfig], Sequence[Placement]]
    """Where trials of this configuration may go, best first."""
    here: bool
    """Whether attempts live in this process, and die with it."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    board: SweepBoard | None = None
    """Where to show the sweep; None: on one of its own."""

    cancelled: Callable[[], bool] = lambda: False
    """Whether a person has cancelled the sweep, where no signal says so."""
    over_budget: Callable[[], str | None] = lambda: None
    """Why a budget that the sweep shares with others does not let it go on."""
    halt: Halt = field(init=False, default_factory=Halt)
    _trials: dict[int, Trial] = field(init=False, default_factory=dict)
    _results: dict[Piece, float] = field(init=False, default_factory=dict)
    _running: dict[int, Piece] = field(init=False, default_factory=dict)
    _ended: queue.SimpleQueue[tuple[Piece, JobStatus | BaseException]] = field(
        init=False, default_factory=queue.SimpleQueue
    )
    _stop: StopRequest | None = field(init=False, default=None)
    _failure: BaseException | None = field(init=False, default=None)
    _limits: SweepLimits = field(init=False)
    _planner: Planner = field(init=False)
    _begun: datetime = field(init=False)

    def run(self) -> SweepStatus:
        """Train what remains to be trained; the status returned is also on record.

        Raises `FencedOut` when another run of the sweep has taken over, and what else ended a trial's supervision.
        """
        self._set_status(JobState.RUNNING, "")
        self._limits, self._begun = self.sweep.read_limits(), now()
        self._board = self.board or SweepBoard(self.sweep)
        for trial in self.sweep.read():
            self._take(trial)
        train, self._planner = self._task(), self.sweep.planner()
        while self._running or (not self._ending and self._planner.work(self._results)):
            try:
                self._turn(train)
            except ObjectMissing:
                raise
            except StoreError as error:
                get_run_logger().warning("the store does not answer, waiting: %s", error)
                time.sleep(STORE_SECONDS)
        if isinstance(self._failure, FencedOut):
            raise self._failure  # where the sweep stands is another's to say
        status = self._conclude()
        self._publish()
        if self._failure is not None:
            raise self._failure
        return status

    def _turn(self, train: Task[[int, int, str], State]) -> None:
        self._heed_limits()
        if self._stop is None and self.cancelled():
            self._ask_to_stop(EndReason.CANCELLED, "cancelled by a person")
        if not self._ending:
            self._submit(train)
        self._collect()
        if self._stop is not None:
            self._pass_on(self._stop)
        if self._board.due:
            self._publish()

    @property
    def _ending(self) -> bool:
        return self._stop is not None or self._failure is not None

    def leave(self, reason: str, cancelled: bool) -> None:
        """End for now, within seconds: SIGTERM has reached this process.

        Trials of this process save and stop; those elsewhere only if a person cancelled, else they are left alone.
        """
        self.halt.launching.set()
        deadline = time.monotonic() + LEAVE_SECONDS
        if cancelled or self.here:
            self._stop = StopRequest(
                end_reason=EndReason.CANCELLED if cancelled else EndReason.INTERRUPTED, reason=reason
            )
            while self._running and time.monotonic() < deadline:
                with suppress(StoreError):
                    self._pass_on(self._stop)
                    self._collect(seconds=0.5)
        self.halt.waiting.set()
        if cancelled:
            self._set_status(JobState.CANCELLED, reason)

    # Trials

    def _task(self) -> Task[[int, int, str], State]:
        @task(
            name="trial",
            task_run_name="trial {number} to step {step}",
            persist_result=False,
            cache_policy=NO_CACHE,
        )
        def train_trial(number: int, step: int, job: str) -> State:
            """Train the trial's job to a step, under a supervisor of its own."""
            piece = Piece(number, self.sweep.read_spec().ladder.index(step))
            try:
                status = self._supervise(Job(self.sweep.root, job), step)
            except BaseException as error:
                self._ended.put((piece, error))
                if isinstance(error, SweepHalted):
                    return Cancelled(name="Stopped", message="the sweep stops")
                raise
            self._ended.put((piece, status))
            return self._as_state(self._trials[number].record, step, status)

        return train_trial

    def _as_state(self, record: TrialRecord, step: int, status: JobStatus) -> State:
        """How a piece of a trial shows in the Prefect UI."""
        if status.state in (JobState.COMPLETED, JobState.PAUSED):
            with suppress(StoreError):
                [trial] = self.sweep.read([record])
                if trial.failure:
                    return Failed(message=trial.failure)
                return Completed(message=f"validation loss {trial.losses[step]:.4f} at step {step:,}")
            return Completed(message=status.reason)
        if status.state is JobState.BUDGET_STOP:
            return Cancelled(name="BudgetStop", message=status.reason)
        return (Cancelled if status.state is JobState.CANCELLED else Failed)(message=status.reason)

    def _supervise(self, job: Job, step: int) -> JobStatus:
        job.set_limits(self._job_limits(job))
        config = job.read_spec().config or self.sweep.base
        supervision = Supervision(
            job,
            Halting(self.make_launcher(job), self.halt),
            self.places(config),
            TrialListener(),
            flow_run_id=str(flow_run.id or ""),
            stop_at_step=step,
            timeouts=self.timeouts,
            over_budget=self.over_budget,
            sleep=self.halt.sleep,
        )
        return supervision.run()

    def _submit(self, train: Task[[int, int, str], State]) -> None:
        """Begin as much of the work as there is room for, as one mapped task."""
        room = self.sweep.read_spec().parallelism - len(self._running)
        chosen: list[Piece] = []
        for piece in self._planner.work(self._results) if room else []:
            if len(chosen) >= room:
                break
            if piece.trial in self._running:
                continue
            if piece.trial not in self._trials:
                record = self.sweep.record_trial(piece.trial, self._planner.values(piece.trial))
                self._take(self.sweep.read([record])[0])
                if record.problem:
                    get_run_logger().warning("trial %d failed: %s", piece.trial, record.problem)
                    return  # what follows from that, the planner says
            chosen.append(piece)
        if not chosen:
            return
        self._running |= {piece.trial: piece for piece in chosen}
        train.map(
            number=[piece.trial for piece in chosen],
            step=[self.sweep.read_spec().ladder[piece.rung] for piece in chosen],
            job=[self._trials[piece.trial].job_id for piece in chosen],
        )

    def _collect(self, seconds: float = LOOK_SECONDS) -> None:
        """Wait a little for trials to end, and take what came of them."""
        try:
            piece, end = self._ended.get(timeout=seconds if self._running else 0.0)
        except queue.Empty:
            return
        try:
            [trial] = self.sweep.read([self._trials[piece.trial].record])
        except StoreError:
            self._ended.put((piece, end))
            raise
        self._running.pop(piece.trial)
        self._take(trial)
        if isinstance(end, BaseException):
            self._heed_error(end)
        elif piece not in self._results and self._stop is None:
            self._heed_end(piece, end)

    def _heed_error(self, error: BaseException) -> None:
        """A supervisor that gave up: nothing new is begun, what runs comes to its rung."""
        if isinstance(error, SweepHalted):
            return
        self._failure = self._failure or error
        if isinstance(error, FencedOut):
            if self.here:
                self._ask_to_stop(EndReason.INTERRUPTED, str(error))
            else:
                self.halt.waiting.set()  # attempts elsewhere are watched by whoever has taken over

    def _heed_end(self, piece: Piece, status: JobStatus) -> None:
        """A trial that ended by itself without a result: why, and what that means for the sweep."""
        if status.state is JobState.BUDGET_STOP:
            self._ask_to_stop(EndReason.BUDGET, status.reason)
        elif status.state is JobState.CANCELLED:
            if not self._asked_before(piece.trial):
                self._ask_to_stop(EndReason.CANCELLED, f"trial {piece.trial} was stopped: {status.reason}")
        else:
            self._failure = self._failure or ServiceError(f"trial {piece.trial}: {status.reason}")

    def _asked_before(self, number: int) -> bool:
        """Whether the trial heeded a request from before this run, as an attempt elsewhere may that stopped late."""
        request = self.sweep.job(number).attempts()[-1].read_stop_request()
        return request is not None and request.at < self._begun

    def _take(self, trial: Trial) -> None:
        self._trials[trial.number] = trial
        self._results |= trial.results(self.sweep.read_spec().ladder)

    # Limits and stopping

    def _heed_limits(self) -> None:
        limits = self.sweep.read_limits()
        if limits != self._limits:
            self._limits = limits
            self._planner = self.sweep.planner()  # of so many trials; it plays all that is known again
            for number in self._running:
                job = self.sweep.job(number)
                job.set_limits(self._job_limits(job))
        if self._stop is None and (reason := self._used_up()):
            self._ask_to_stop(EndReason.BUDGET, reason)

    def _used_up(self) -> str:
        """Which limit is met, in words; empty while there is something left."""
        limits = self._limits
        if limits.max_cost_usd is not None and self._cost_soon() >= limits.max_cost_usd:
            return f"the sweep's budget of ${limits.max_cost_usd:g} is used up"
        deadline = self._deadline()
        if deadline is not None and now() >= deadline:
            return f"the sweep's time is over (until {deadline:%Y-%m-%d %H:%M} UTC)"
        return ""

    def _cost_soon(self) -> float:
        """What all trials have cost, and what those that run will have when they have saved."""
        ended = sum(trial.cost_usd for number, trial in self._trials.items() if number not in self._running)
        total = ended
        for number in self._running:
            job = self.sweep.job(number)
            attempts = job.attempts()
            launch = attempts[-1].read_launch() if attempts else None
            total += job.cost_usd() + (launch.usd_per_hour / 3600 * SAVE_SECONDS if launch else 0.0)
        return total

    def _deadline(self) -> datetime | None:
        limits, begun = self._limits, self.sweep.read_spec().created_at
        ends = [limits.finish_by] if limits.finish_by else []
        ends += [begun + timedelta(hours=limits.max_hours)] if limits.max_hours else []
        return min(ends, default=None)

    def _job_limits(self, job: Job) -> Limits:
        """A trial alone may not use more than the whole sweep; raising the sweep's limits raises these."""
        deadline = self._deadline()
        hours = (deadline - job.read_spec().created_at).total_seconds() / 3600 if deadline else None
        return Limits(
            max_cost_usd=self._limits.max_cost_usd,
            max_hours=None if hours is None else max(hours, 1e-6),
            max_attempts_without_progress=FRUITLESS_ATTEMPTS,
        )

    def _ask_to_stop(self, end_reason: EndReason, reason: str) -> None:
        if self._stop is None:
            get_run_logger().warning("the sweep stops: %s", reason)
            self._stop = StopRequest(end_reason=end_reason, reason=reason)
            self.halt.launching.set()

    def _pass_on(self, request: StopRequest) -> None:
        """Ask every running attempt to save and stop; again and again, since one may just be starting."""
        for number in self._running:
            attempts = self.sweep.job(number).attempts()
            attempt = attempts[-1] if attempts else None
            # One of this process that is not claimed yet never will be: nothing is launched any more.
            if attempt and attempt.read_outcome() is None and (not self.here or attempt.read_claim()):
                attempt.request_stop(request)

    # The end

    def _conclude(self) -> SweepStatus:
        trials = self._trials.values()
        done = f"{len(trials)} trials, {sum(trial.steps for trial in trials):,} steps"
        best = min((t for t in trials if t.losses and not t.failure), key=lambda t: t.rank_key, default=None)
        if best is not None:
            done += f"; best: trial {best.number} with validation loss {best.loss:.4f} at step {best.step:,}"
        if self._failure is not None:
            return self._set_status(JobState.FAILED, f"{self._failure}; {done}; start it again to go on")
        if self._stop is None and best is None and trials:
            return self._set_status(JobState.FAILED, f"all {len(trials)} trials failed; the leaderboard says why")
        if self._stop is None:
            return self._set_status(JobState.COMPLETED, done)
        state = _STOPPED.get(self._stop.end_reason, JobState.FAILED)
        return self._set_status(state, f"{self._stop.reason}; {done}; everything is saved, start it again to go on")

    def _set_status(self, state: JobState, reason: str) -> SweepStatus:
        status = SweepStatus(state=state, reason=reason, flow_run_id=str(flow_run.id or ""))
        self.sweep.set_status(status)
        return status

    def _publish(self) -> None:
        """Show where the sweep stands; of trials that run, what their records say by now."""
        for trial in self.sweep.read([self._trials[number].record for number in self._running]):
            self._trials[trial.number] = trial
        self._board.publish(list(self._trials.values()))


_STOPPED = {EndReason.BUDGET: JobState.BUDGET_STOP, EndReason.CANCELLED: JobState.CANCELLED}
