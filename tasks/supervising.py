"""What every flow that supervises a job does: own it, put it on record, run its attempts, end as it ended.

@flow(name="train-something")
def train_something(**given):
    request = SomeRequest(**given)
    spec = JobSpec(job_id=…, project=request.project, owner=request.owner)
    return end_as(supervised(spec, request.store, lambda run: _train(request, run)))
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from prefect import tags
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed

from crucible.errors import CrucibleError, FencedOut
from crucible.estimate.for_job import remember_job
from crucible.estimate.history import remember_plan
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec, Limits
from crucible.jobs.status import JobState, JobStatus
from crucible.placement.choice import Choice, read_choice, remember_choice
from crucible.store.retry import persist, wait_at_most
from crucible.supervision.heartbeat import HeartbeatWriter
from crucible.supervision.launcher import Launcher
from crucible.supervision.placement_policy import PlacementPolicy
from crucible.supervision.prefect_server import server_id
from crucible.supervision.retry_policy import Timeouts
from crucible.supervision.supervisor import Supervision
from tasks.costs import BudgetWatch
from tasks.ending import as_prefect_state
from tasks.job_variables import remember_variables, require_known, variables_of
from tasks.launching import HereOrElsewhere, PrefectLauncher
from tasks.observing import JobListener, add_tags, job_tags
from tasks.stopping import StopWatch, stay_paused
from tasks.storage import open_store
from tasks.tracking import Tracking
from tasks.training import heartbeat_seconds

SAVE_SECONDS = 20.0
"""For the running attempt to save: Prefect's process worker waits 30 s between SIGTERM and SIGKILL."""
REMEMBER_SECONDS = 60.0
"""How long to wait for the store."""


@dataclass(frozen=True)
class SupervisedJob:
    """The job of the running flow, while it is supervised."""

    job: Job
    spec: JobSpec
    """As far as it is known before the job is on record: its name, project and owner."""
    store: str
    """The name or address of the job's store, as attempts get it."""
    watch: StopWatch
    tracking: Tracking | None = None
    """What shows the job in trackers; None for a stage."""
    here: Launcher | None = None
    """What starts attempts on the pool `local` where this process is that pool; None: its deployment does."""

    def read_choice(self) -> Choice | None:
        """What this flow run chose when it first started; its deadline may have passed since."""
        return read_choice(self.job, flow_run.id or "")

    def read_forked(self) -> JobSpec | None:
        """The job as it was forked from another one, complete; None where this flow makes the job."""
        spec = self.job.read_spec() if self.job.store.exists("job.json") else None
        return spec if spec is not None and spec.forked_from is not None else None

    def put_on_record(self, spec: JobSpec, limits: Limits, choice: Choice) -> None:
        """The job, new or as it is there already; not before all is known, or its name would be taken by nothing."""
        first_choice = self.read_choice() is None
        require_known(variables_of(self.job, spec), choice.placements)
        Job.create(self.job.root, spec)
        if self.job.first_start(flow_run.id or ""):
            self.job.set_limits(limits)
            if spec.stage == "train":
                remember_variables(self.job)
        if first_choice:
            remember_choice(self.job, flow_run.id or "", choice)
        if choice.planned:
            remember_plan(self.job, choice.planned)

    def track(self, trackers: Sequence[str] | str) -> None:
        """Show the job in these trackers as well, until this flow run ends.

        Raises `ConfigError` for one that there is not, unless the job has begun.
        """
        assert self.tracking is not None
        self.tracking.start(trackers, begun=bool(self.job.attempts()))

    def run_attempts(self, choice: Choice, policy: PlacementPolicy) -> JobStatus:
        """Launch attempts, one after another, until the job has ended or a person stops it."""
        supervision = self.supervision(choice, policy)
        with self.watch.polled():  # around the stop as well: it must not be interrupted by the request that it serves
            try:
                return supervision.run()
            except TerminationSignal:
                if (request := self.watch.requested()) is None:
                    raise
                return supervision.stop(request, SAVE_SECONDS)

    def remember(self) -> None:
        """Let estimates learn from the job, which has ended. A store that refuses costs that, and no evaluation."""
        try:
            persist(lambda: remember_job(self.job), wait_at_most(REMEMBER_SECONDS))
        except CrucibleError as error:
            get_run_logger().warning("estimates learn nothing from job %s: %s", self.job.job_id, error)

    def supervision(self, choice: Choice, policy: PlacementPolicy) -> Supervision:
        """What runs the job's attempts."""
        spec = self.job.read_spec()
        elsewhere = PrefectLauncher(self.store, spec.project, spec.owner, spec.resources)
        return Supervision(
            self.job,
            HereOrElsewhere(self.here, elsewhere) if self.here else elsewhere,
            choice.placements,
            JobListener(),
            flow_run_id=str(flow_run.id or ""),
            placement_policy=policy,
            timeouts=Timeouts(ended_and_silent=2 * heartbeat_seconds(self.job.root) + 2.0),
            over_budget=(
                BudgetWatch(self.job.root, spec.project, spec.owner)
                if any(place.usd_per_hour for place in choice.placements)
                else lambda: None
            ),
            stop_requested=lambda: self.watch.request,
            logger=get_run_logger(),
        )


def supervised(spec: JobSpec, store: str, work: Callable[[SupervisedJob], JobStatus]) -> State:
    """Do `work` as the job's supervisor, and return the state in which the flow run ends.

    Raises what Prefect's engine has to handle: the end of this process, which leaves the job as it is, and a pause.
    """
    try:
        placed = open_store(store)
        job = Job(placed, spec.job_id)
        marks = job_tags(spec)
        with (
            tags(*marks),
            StopWatch(job) as watch,
            HeartbeatWriter(placed, flow_run.id or "", spec.job_id, server_id()) as heartbeat,
            Tracking(store, {"job": spec.job_id}, lambda: watch.request is not None) as tracking,
        ):
            add_tags(*marks, "stage:pipeline")
            try:
                status = work(SupervisedJob(job, spec, store, watch, tracking))
                watch.carried_out()
                if status.state is JobState.PAUSED and watch.paused:
                    return stay_paused(status.reason)
                return as_prefect_state(status.state, status.reason)
            except TerminationSignal:
                # A person stopped it outside of supervision. Any other end of this process leaves the job as it is,
                # for the next run of this flow to find.
                stop = watch.requested()
                if stop is None:
                    raise
                watch.carried_out()
                heartbeat.finish()
                if watch.paused:
                    return stay_paused(stop.reason)
                return Cancelled(message=stop.reason)
    except FencedOut as error:
        newest = job.read_newest_supervisor()
        if newest is not None and newest.flow_run_id == flow_run.id:
            raise Abort(str(error)) from error  # this very flow run was started again: its state is not ours to set
        return Cancelled(name="Superseded", message=str(error))
    except CrucibleError as error:
        get_run_logger().error(str(error))
        return Failed(message=str(error))
