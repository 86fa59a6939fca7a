"""Runs a sweep: trials as tasks, each under a supervisor of its own, until nothing remains or a limit is reached.

The planner decides what to train next. `SweepRun` keeps as many trials running as the sweep allows, reads each result
from the records, and asks the planner again. It has no state that is not on record: killed and restarted, it reads the
records and makes the same decisions.
"""

from __future__ import annotations

import queue
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from datetime import datetime
from typing import TypeVar

from prefect import task
from prefect.cache_policies import NO_CACHE
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Completed, Failed
from prefect.tasks import Task

from crucible.errors import FencedOut, RecordDamaged, ServiceError, StoreError, StoreUnavailable
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, JobSpec, Limits, StopRequest, now
from crucible.jobs.status import JobState, JobStatus
from crucible.store.retry import persist, wait
from crucible.supervision.launcher import Launcher
from crucible.supervision.retry_policy import Placement, Timeouts
from crucible.supervision.supervisor import Supervision
from crucible.sweeps.limits import conclude, deadline, trial_limits, why_used_up
from crucible.sweeps.planner import Planner
from crucible.sweeps.records import SweepLimits, SweepStatus, TrialRecord
from crucible.sweeps.schedules import TrialRung
from crucible.sweeps.sweep import Sweep
from crucible.sweeps.trials import Trial
from tasks.sweep_reporting import SweepBoard
from tasks.trials import Halt, Halting, SweepHalted, TrialListener

T = TypeVar("T")
LOOK_SECONDS = 1.0
SAVE_SECONDS = 20.0
"""What a trial that is asked to stop may still take, and cost."""
LEAVE_SECONDS = 22.0
"""Prefect's process worker waits 30 s between SIGTERM and SIGKILL."""


@dataclass
class SweepRun:
    """Runs one sweep in the flow run that calls it: `SweepRun(sweep, launcher, places).run()`."""

    sweep: Sweep
    make_launcher: Callable[[Job], Launcher]
    places: Callable[[JobSpec], Sequence[Placement]]
    """Where the job of a trial may go, best first."""
    here: bool
    """Whether attempts live in this process, and die with it."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    board: SweepBoard | None = None
    """Where to show the sweep; None: on one of its own."""

    cancelled: Callable[[], bool] = lambda: False
    """Whether a person has cancelled the sweep, where no signal says so."""
    over_budget: Callable[[], str | None] = lambda: None
    """Why a budget that the sweep shares with others does not let it go on."""
    spent_before_usd: float = 0.0
    """What the stage before the trials has cost."""
    halt: Halt = field(init=False, default_factory=Halt)
    _trials: dict[int, Trial] = field(init=False, default_factory=dict)
    _results: dict[TrialRung, float] = field(init=False, default_factory=dict)
    _running: dict[int, TrialRung] = field(init=False, default_factory=dict)
    _ended: queue.SimpleQueue[tuple[TrialRung, JobStatus | BaseException]] = field(
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
        self._begun, self._board = now(), self.board or SweepBoard(self.sweep)
        self._persist(self._begin)
        train = self._task()
        while self._running or (not self._ending and self._planner.work(self._results)):
            try:
                self._persist(lambda: self._turn(train))
            except StoreError as error:  # a damaged record, or no access: waiting does not help
                self._fail(error)
                time.sleep(LOOK_SECONDS)
        if isinstance(self._failure, FencedOut):
            raise self._failure  # the run that took over records where the sweep stands
        end = conclude(self._trials.values(), self._stop, self._failure)
        status = self._persist(lambda: self._set_status(*end))
        with suppress(StoreUnavailable):  # the records have it
            self._publish()
        if self._failure is not None:
            raise self._failure
        return status

    def _begin(self) -> None:
        self._set_status(JobState.RUNNING, "")
        self._limits = self.sweep.read_limits()
        for trial in self.sweep.read_trials():
            self._take(trial)
        self._planner = self.sweep.planner()

    def _turn(self, train: Task[[int, int, str, str], State]) -> None:
        if self._stop is None and self.cancelled():
            self._ask_to_stop(EndReason.CANCELLED, "cancelled by a person")
        if not self._ending:
            self._follow_limits()
        if not self._ending:
            self._submit(train)
        self._collect()
        if self._stop is not None:
            self._pass_on(self._stop)
        if self._board.due:
            self._publish()

    def _persist(self, action: Callable[[], T]) -> T:
        return persist(action, self._wait_for_the_store, self._unreachable)

    def _wait_for_the_store(self, seconds: float) -> bool:
        """Whether to give up rather than wait that long for a store that does not answer."""
        return wait(seconds, self.cancelled) and not self._running

    def _unreachable(self, error: StoreError) -> None:
        get_run_logger().warning("the store does not answer, trying again: %s", error)

    @property
    def _ending(self) -> bool:
        return self._stop is not None or self._failure is not None

    def leave(self, reason: str, cancelled: bool) -> None:
        """End for now, within seconds: SIGTERM has reached this process.

        Trials of this process save and stop; those elsewhere only if a person cancelled, else they are left alone.
        """
        self.halt.launching.set()
        until = time.monotonic() + LEAVE_SECONDS
        if cancelled or self.here:
            self._stop = StopRequest(
                end_reason=EndReason.CANCELLED if cancelled else EndReason.INTERRUPTED, reason=reason
            )
            while self._running and time.monotonic() < until:
                with suppress(StoreError):
                    self._pass_on(self._stop)
                    self._collect(seconds=0.5)
        self.halt.waiting.set()
        if cancelled:
            self._set_status(JobState.CANCELLED, reason)

    # Trials

    def _task(self) -> Task[[int, int, str, str], State]:
        @task(
            name="trial",
            task_run_name="trial {number} to {until}",
            persist_result=False,
            cache_policy=NO_CACHE,
        )
        def train_trial(number: int, step: int, job: str, until: str) -> State:
            """Train the trial's job to a step, under a supervisor of its own."""
            target = TrialRung(number, self.sweep.read_spec().ladder.index(step))
            try:
                status = self._supervise(Job(self.sweep.root, job), step)
            except BaseException as error:
                self._ended.put((target, error))
                if isinstance(error, SweepHalted):
                    return Cancelled(name="Stopped", message="the sweep stops")
                raise
            self._ended.put((target, status))
            return self._as_state(self._trials[number].record, step, status)

        return train_trial

    def _as_state(self, record: TrialRecord, step: int, status: JobStatus) -> State:
        """How a trial that was trained to a rung shows in the Prefect UI."""
        if status.state in (JobState.COMPLETED, JobState.PAUSED):
            with suppress(StoreError):
                [trial] = self.sweep.read_trials([record])
                if trial.failure:
                    return Failed(message=trial.failure)
                value = trial.objective.as_loss(trial.losses[step])
                return Completed(message=f"{trial.objective.label} {value:.4f} at step {trial.shown_step:,}")
            return Completed(message=status.reason)
        if status.state is JobState.BUDGET_STOP:
            return Cancelled(name="BudgetStop", message=status.reason)
        return (Cancelled if status.state is JobState.CANCELLED else Failed)(message=status.reason)

    def _supervise(self, job: Job, step: int) -> JobStatus:
        job.set_limits(self._job_limits(job))
        stop_at_step = self.sweep.read_kind().stop_at_step(step)
        supervision = Supervision(
            job,
            Halting(self.make_launcher(job), self.halt),
            self.places(job.read_spec()),
            TrialListener(),
            flow_run_id=str(flow_run.id or ""),
            stop_at_step=stop_at_step,
            to_the_end=stop_at_step is None,
            timeouts=self.timeouts,
            over_budget=self.over_budget,
            sleep=self.halt.sleep,
        )
        return supervision.run()

    def _submit(self, train: Task[[int, int, str, str], State]) -> None:
        """Begin as much of the work as there is room for, as one mapped task."""
        room = self.sweep.read_spec().parallelism - len(self._running)
        chosen: list[TrialRung] = []
        for target in self._planner.work(self._results) if room else []:
            if len(chosen) >= room:
                break
            if target.trial in self._running:
                continue
            known = self._trials.get(target.trial)
            if known is None or known.state == "new":  # perhaps killed between the trial's record and its job's
                record = self.sweep.record_trial(target.trial, self._planner.values(target.trial))
                self._take(self.sweep.read_trials([record])[0])
                if record.problem:
                    get_run_logger().warning("trial %d failed: %s", target.trial, record.problem)
                    return  # the planner decides what follows from that
            chosen.append(target)
        if not chosen:
            return
        self._running |= {target.trial: target for target in chosen}
        spec = self.sweep.read_spec()
        steps = [spec.ladder[target.rung] for target in chosen]
        train.map(
            number=[target.trial for target in chosen],
            step=steps,
            job=[self._trials[target.trial].job_id for target in chosen],
            until=[spec.until(step) for step in steps],
        )

    def _collect(self, seconds: float = LOOK_SECONDS) -> None:
        """Wait a little for a trial to end, and read its result."""
        try:
            target, end = self._ended.get(timeout=seconds if self._running else 0.0)
        except queue.Empty:
            return
        try:
            [trial] = self.sweep.read_trials([self._trials[target.trial].record])
            stopped = isinstance(end, JobStatus) and end.state is JobState.CANCELLED and self._stop is None
            asked_before = stopped and self._asked_before(target.trial)
        except StoreError:
            self._ended.put((target, end))
            raise
        self._running.pop(target.trial)
        self._take(trial)
        if isinstance(end, BaseException):
            self._handle_error(target, end)
        elif target not in self._results and self._stop is None:
            self._handle_end(target, end, asked_before)

    def _handle_error(self, target: TrialRung, error: BaseException) -> None:
        """A supervisor gave up. Unless only its trial is damaged: begin nothing new, let trials come to their rung."""
        if isinstance(error, SweepHalted):
            return
        if isinstance(error, RecordDamaged):
            get_run_logger().warning("trial %d failed: %s", target.trial, error)
            self._take(replace(self._trials[target.trial], failure=str(error), state="failed"))
            return
        self._fail(error)
        if isinstance(error, FencedOut):
            if self.here:
                self._ask_to_stop(EndReason.INTERRUPTED, str(error))
            else:
                self.halt.waiting.set()  # attempts elsewhere are watched by the run that took over

    def _fail(self, error: BaseException) -> None:
        if self._failure is None:
            get_run_logger().error("the sweep ends: %s", error)
            self._failure = error

    def _handle_end(self, target: TrialRung, status: JobStatus, asked_before: bool) -> None:
        """What it means for the sweep that a trial ended by itself without a result."""
        if status.state is JobState.BUDGET_STOP:
            self._ask_to_stop(EndReason.BUDGET, status.reason)
        elif status.state is JobState.CANCELLED:
            if not asked_before:
                self._ask_to_stop(EndReason.CANCELLED, f"trial {target.trial} was stopped: {status.reason}")
        else:
            self._fail(ServiceError(f"trial {target.trial}: {status.reason}"))

    def _asked_before(self, number: int) -> bool:
        """Whether the trial followed a request from before this run; an attempt elsewhere may stop late."""
        with suppress(RecordDamaged):  # somebody wants a stop
            attempts = self.sweep.job(number).attempts()
            request = attempts[-1].read_stop_request() if attempts else None
            return request is not None and request.at < self._begun
        return False

    def _take(self, trial: Trial) -> None:
        self._trials[trial.number] = trial
        self._results |= trial.results(self.sweep.read_spec().ladder)

    # Limits and stopping

    def _follow_limits(self) -> None:
        limits = self.sweep.read_limits()
        if limits != self._limits:
            self._limits = limits
            self._planner = self.sweep.planner()  # for the new number of trials; it simulates all results again
            for number in self._running:
                job = self.sweep.job(number)
                job.set_limits(self._job_limits(job))
        if self._stop is None and (reason := why_used_up(limits, self._deadline(), self._cost_soon(), now())):
            self._ask_to_stop(EndReason.BUDGET, reason)

    def _cost_soon(self) -> float:
        """USD that preprocessing and all trials have cost; of running ones, once they have saved."""
        total = self.spent_before_usd + sum(
            trial.cost_usd for number, trial in self._trials.items() if number not in self._running
        )
        for number in self._running:
            job = self.sweep.job(number)
            with suppress(RecordDamaged):  # costs its own trial only
                attempts = job.attempts()
                launch = attempts[-1].read_launch() if attempts else None
                total += job.cost_usd() + (launch.usd_per_hour / 3600 * SAVE_SECONDS if launch else 0.0)
        return total

    def _deadline(self) -> datetime | None:
        return deadline(self._limits, self.sweep.read_spec().created_at)

    def _job_limits(self, job: Job) -> Limits:
        return trial_limits(self._limits, self._deadline(), job.read_spec().created_at)

    def _ask_to_stop(self, end_reason: EndReason, reason: str) -> None:
        if self._stop is None:
            get_run_logger().warning("the sweep stops: %s", reason)
            self._stop = StopRequest(end_reason=end_reason, reason=reason)
            self.halt.launching.set()

    def _pass_on(self, request: StopRequest) -> None:
        """Ask every running attempt to save and stop; on every turn, since one may just be starting."""
        for number in self._running:
            attempts = self.sweep.job(number).attempts()
            attempt = attempts[-1] if attempts else None
            # One of this process that is not claimed yet never will be: nothing is launched any more.
            if attempt and attempt.read_outcome() is None and (not self.here or attempt.read_claim()):
                attempt.request_stop(request)

    # The end

    def _set_status(self, state: JobState, reason: str) -> SweepStatus:
        status = SweepStatus(state=state, reason=reason, flow_run_id=str(flow_run.id or ""))
        self.sweep.set_status(status)
        return status

    def _publish(self) -> None:
        """Show where the sweep stands; of trials that run, what their records say by now."""
        for trial in self.sweep.read_trials([self._trials[number].record for number in self._running]):
            self._trials[trial.number] = trial
        self._board.publish(list(self._trials.values()))
