"""What every flow that searches does: own its sweep, set its limits, run its trials, end as it ended.

@flow(name="tune-something")
def tune_something(**given):
    request = SomeRequest(**given)
    asked = SweepRequest(sweep_name(), request.store, request.project, request.owner)
    return end_as(supervised_sweep(asked, lambda run: _tune(request, run)))
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from prefect import tags
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed

from crucible.errors import CrucibleError, FencedOut
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec
from crucible.jobs.status import JobState
from crucible.store import Store
from crucible.supervision.heartbeat import HeartbeatWriter
from crucible.supervision.launcher import Launcher
from crucible.supervision.prefect_server import server_id
from crucible.supervision.retry_policy import Placement, Timeouts
from crucible.sweeps.records import SweepLimits, SweepStatus
from crucible.sweeps.search import all_trials
from crucible.sweeps.sweep import Sweep
from tasks.costs import BudgetWatch
from tasks.ending import as_prefect_state
from tasks.job_variables import given_to_this_run, require_known
from tasks.launching import PrefectLauncher
from tasks.observing import add_tags
from tasks.stopping import StopWatch, stay_paused
from tasks.storage import open_store
from tasks.supervising import SupervisedJob
from tasks.sweep_reporting import SweepBoard
from tasks.sweeping import SweepRun
from tasks.tracking import Tracking
from tasks.training import heartbeat_seconds
from tasks.trials import HereLauncher, Machine, threads_per_trial

HERE = "local"
"""The pool whose trials run in the sweep's own process."""
LOOK_HERE_SECONDS = 0.2
MOST_HERE, SOME_ELSEWHERE = 8, 4
"""Trials at a time where no number is given."""


@dataclass(frozen=True)
class SweepRequest:
    """Which sweep is to be carried out, and whose it is."""

    name: str
    store: str
    project: str
    owner: str


@dataclass(frozen=True)
class SupervisedSweep:
    """The sweep of the running flow, while it is supervised."""

    sweep: Sweep
    request: SweepRequest
    watch: StopWatch
    heartbeat: HeartbeatWriter
    board: SweepBoard
    tracking: Tracking

    @property
    def root(self) -> Store:
        """The store that the sweep and its trials lie in."""
        return self.sweep.root

    def machine_share(self, pool: str, parallelism: int | None, threads: int | None = None) -> tuple[int, int | None]:
        """Trials at a time, and CPU threads of each where they share this machine; as on record, if it is there.

        `threads`: what each trial takes anyway; None: an even share.
        """
        known = self.sweep.read_spec() if self.sweep.exists() else None
        here = pool == HERE
        if parallelism is None:
            own = min(MOST_HERE, threads_per_trial(1)) if here else SOME_ELSEWHERE
            parallelism = known.parallelism if known else own
        if known is not None:
            return parallelism, known.threads
        return parallelism, threads_per_trial(parallelism) if here and threads is None else None

    def track(self, trackers: Sequence[str] | str) -> None:
        """Show every trial in these trackers as well, until this flow run ends.

        Raises `ConfigError` for one that there is not, unless the sweep has begun.
        """
        self.tracking.start(trackers, begun=bool(self.sweep.read_trial_records()))

    def set_limits(self, given: Mapping[str, Any]) -> None:
        """Set the limits of this request, once: a flow run that is restarted keeps what a person has set since."""
        sweep = self.sweep
        if not sweep.first_start(flow_run.id or ""):
            return
        spec, space = sweep.read_spec(), sweep.read_space()
        before = sweep.read_limits().model_dump() if sweep.has_limits() else {"max_trials": all_trials(spec, space)}
        limits = SweepLimits.model_validate({**before, **given})
        if spec.sampler == "grid":
            limits.max_trials = min(limits.max_trials, len(space.grid()))
        sweep.set_limits(limits)

    def supervised_job(self, job_id: str, spec: JobSpec) -> SupervisedJob:
        """A job around the trials: on this machine its attempts live in this process, as those of trials do."""
        here = HereLauncher(Machine(1, None), lambda: self.watch.request)
        return SupervisedJob(Job(self.root, job_id), spec, self.request.store, self.watch, here=here)

    def run_trials(self, places: Callable[[JobSpec], Sequence[Placement]], base: Sequence[Placement]) -> SweepStatus:
        """Train what remains, until nothing does, a limit is reached, or a person stops it.

        `base`: where a trial with the settings that all share would go; on this machine every trial goes there.
        """
        sweep, spec = self.sweep, self.sweep.read_spec()
        here = spec.pool == HERE
        require_known(given_to_this_run(), base)
        timeouts = Timeouts(ended_and_silent=2 * heartbeat_seconds(sweep.root) + 2.0)
        if here:  # an attempt whose process is gone is over, and one that has ended has an outcome
            timeouts = Timeouts(ended_and_silent=0.0, poll=LOOK_HERE_SECONDS)
        machine = Machine(spec.parallelism, spec.threads)

        def launcher(_: Job) -> Launcher:
            if here:
                return HereLauncher(machine)
            return PrefectLauncher(self.request.store, spec.project, spec.owner, spec.resources)

        run = SweepRun(
            sweep,
            make_launcher=launcher,
            places=(lambda _: base) if here else places,
            here=here,
            over_budget=(lambda: None) if here else BudgetWatch(sweep.root, spec.project, spec.owner),
            timeouts=timeouts,
            board=self.board,
            cancelled=lambda: self.watch.request is not None,
            spent_before_usd=Job(sweep.root, spec.prepared_by).cost_usd() if spec.prepared_by else 0.0,
        )
        with self.watch.polled():  # around the stop as well: it must not be interrupted by the request that it serves
            try:
                status = run.run()
            except TerminationSignal:
                stop = self.watch.requested()
                if stop is not None:
                    self.heartbeat.finish()
                run.leave(stop.reason if stop else "the flow run was asked to stop (SIGTERM)", stop is not None)
                raise
        if self.watch.paused and status.state is JobState.CANCELLED:
            return stay_paused(status.reason)
        return status


def supervised_sweep(request: SweepRequest, work: Callable[[SupervisedSweep], SweepStatus]) -> State:
    """Do `work` as the sweep's supervisor, and return the state in which the flow run ends.

    Raises what Prefect's engine has to handle: the end of this process, which leaves the sweep as it is, and a pause.
    """
    try:
        placed = open_store(request.store)
        sweep = Sweep(placed, request.name)
        marks = [f"sweep:{request.name}", f"project:{request.project}"]
        marks += [f"owner:{request.owner}"] if request.owner else []
        with (
            tags(*marks),
            StopWatch() as watch,
            HeartbeatWriter(placed, flow_run.id or "", request.name, server_id()) as heartbeat,
            Tracking(request.store, {"sweep": request.name}, lambda: watch.request is not None) as tracking,
        ):
            add_tags(*marks, "stage:tune")
            try:
                status = work(SupervisedSweep(sweep, request, watch, heartbeat, SweepBoard(sweep), tracking))
            except TerminationSignal:
                # A person stopped it outside of its trials. Any other end of this process leaves the sweep as it is.
                if (stop := watch.requested()) is None:
                    raise
                heartbeat.finish()
                if watch.paused:
                    return stay_paused(stop.reason)
                return Cancelled(message=stop.reason)
            if status.state is JobState.PAUSED and watch.paused:  # in a stage around the trials
                return stay_paused(status.reason)
    except FencedOut as error:
        if (newest := sweep.read_status()) is not None and newest.flow_run_id == flow_run.id:
            raise Abort(str(error)) from error  # this very flow run was started again: its state is not ours to set
        return Cancelled(name="Superseded", message=str(error))
    except CrucibleError as error:
        get_run_logger().error(str(error))
        return Failed(message=str(error))
    return as_prefect_state(status.state, status.reason)
