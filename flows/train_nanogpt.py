"""`train-nanogpt`: preprocess → train → evaluate, whatever happens to the machines in between.

The front door: `prefect deployment run train-nanogpt`. This flow supervises: it runs on the light `local` pool, starts
every attempt as a flow run of `train/<pool>`, and decides from the attempt's record what comes next. Killed and
started again, it finds its job and carries on.

    python flows/train_nanogpt.py --preset debug     # the same without a deployment, against the current server
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from prefect import flow, tags
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed

from crucible.config import TrainConfig
from crucible.datasets.build import DatasetInfo, resolve_dataset
from crucible.datasets.meta import DatasetMeta, require_block_size
from crucible.errors import CrucibleError, FencedOut
from crucible.estimate.for_job import remember_job
from crucible.estimate.history import remember_plan
from crucible.estimate.ranking import Preferences
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec, Limits, now
from crucible.jobs.status import JobState, JobStatus
from crucible.placement.choice import Choice, PlacementRequest, read_choice, remember_choice
from crucible.store import Store
from crucible.supervision.heartbeat import HeartbeatWriter
from crucible.supervision.prefect_server import server_id
from crucible.supervision.retry_policy import Timeouts
from crucible.supervision.supervisor import Supervision
from flows.evaluate import evaluate
from flows.forms import takes
from flows.parameters import TrainRequest
from flows.preprocess import preprocess
from tasks.console import outlive_the_console
from tasks.costs import BudgetWatch
from tasks.ending import as_prefect_state, end_as, without_heartbeat
from tasks.launching import PrefectLauncher
from tasks.observing import JobListener, add_tags, job_tags
from tasks.placing import choose, placement_policy_for, saved_share
from tasks.stopping import StopWatch, stay_paused
from tasks.storage import open_store
from tasks.training import heartbeat_seconds

SAVE_SECONDS = 20.0
"""For the running attempt to save: Prefect's process worker waits 30 s between SIGTERM and SIGKILL."""


def job_name() -> str:
    """The job's id: as given, or after the flow run, so that a flow run that is started again finds its job."""
    return flow_run.parameters.get("job") or f"nanogpt-{flow_run.id[:8]}"


@flow(name="train-nanogpt", flow_run_name=job_name)
@takes(TrainRequest)
def train_nanogpt(**given: Any) -> State:
    """Train a GPT to the end of its configuration, over as many machines as it takes."""
    outlive_the_console()
    request = TrainRequest(**given)
    try:
        spec = JobSpec(job_id=job_name(), project=request.project, owner=request.owner)
        placed = open_store(request.store)
        job = Job(placed, spec.job_id)
        # For a flow run that is restarted the choice is on record, and its deadline may have passed.
        choice = read_choice(job, flow_run.id or "")
        deadline = request.deadline(after=None if choice else now())
        marks = job_tags(spec)
        with (
            tags(*marks),
            StopWatch(job) as watch,
            HeartbeatWriter(placed, flow_run.id or "", spec.job_id, server_id()) as heartbeat,
        ):
            add_tags(*marks, "stage:pipeline")
            try:
                config = request.train_config()
                data = _prepare(request, config, placed)
                first_choice = choice is None
                if choice is None:
                    choice = choose(placed, _placement_request(job, request, config, data.meta, deadline))
                # Not before: a run that is refused leaves no job behind whose name is taken.
                _put_on_record(spec, request.limits(), config, data.digest, placed)
                if first_choice:
                    remember_choice(job, flow_run.id or "", choice)
                if choice.planned:
                    remember_plan(job, choice.planned)
                status = _supervise(job, choice, config, request.store, watch)
                if status.state is JobState.COMPLETED:
                    remember_job(job)
                    if request.run_evaluation:
                        with without_heartbeat():
                            evaluate(job=job.job_id, store=request.store)
                if status.state is JobState.PAUSED and watch.paused:
                    return stay_paused(status.reason)
                state = as_prefect_state(status.state, status.reason)
            except TerminationSignal:
                # A person stopped it outside of supervision. Any other end of this process leaves the job as it is,
                # for the next run of this flow to find.
                stop = watch.requested()
                if stop is None:
                    raise
                heartbeat.finish()
                if watch.paused:
                    return stay_paused(stop.reason)
                state = Cancelled(message=stop.reason)
    except FencedOut as error:
        newest = job.read_newest_supervisor()
        if newest is not None and newest.flow_run_id == flow_run.id:
            raise Abort(str(error)) from error  # this very flow run was started again: its state is not ours to set
        state = Cancelled(name="Superseded", message=str(error))
    except CrucibleError as error:
        get_run_logger().error(str(error))
        state = Failed(message=str(error))
    return end_as(state)


def _placement_request(
    job: Job, request: TrainRequest, config: TrainConfig, meta: DatasetMeta, deadline: datetime | None
) -> PlacementRequest:
    return PlacementRequest(
        job_id=job.job_id,
        config=config,
        dataset=meta,
        pool=request.pool,
        limits=request.limits(),
        preferences=Preferences(optimize_for=request.optimize_for),
        project=request.project,
        owner=request.owner,
        finish_by=deadline,
        saved_share=saved_share(job, config.max_iters),
    )


def _prepare(request: TrainRequest, config: TrainConfig, placed: Store) -> DatasetInfo:
    """The job's dataset, in the store."""
    with without_heartbeat():
        data = resolve_dataset(placed, preprocess(dataset=request.dataset, store=request.store))
    require_block_size(data.meta, config.block_size)
    return data


def _put_on_record(spec: JobSpec, limits: Limits, config: TrainConfig, dataset: str, placed: Store) -> None:
    """The job, new or as it is there already."""
    job = Job.create(placed, spec.model_copy(update={"config": config, "dataset": dataset}))
    if job.first_start(flow_run.id or ""):
        job.set_limits(limits)


def _supervise(job: Job, choice: Choice, config: TrainConfig, store: str, watch: StopWatch) -> JobStatus:
    spec = job.read_spec()
    supervision = Supervision(
        job,
        PrefectLauncher(store, spec.project, spec.owner),
        choice.placements,
        JobListener(),
        flow_run_id=str(flow_run.id or ""),
        placement_policy=placement_policy_for(choice, job, config),
        timeouts=Timeouts(ended_and_silent=2 * heartbeat_seconds(job.root) + 2.0),
        over_budget=(
            BudgetWatch(job.root, spec.project, spec.owner)
            if any(place.usd_per_hour for place in choice.placements)
            else lambda: None
        ),
        stop_requested=lambda: watch.request,
        logger=get_run_logger(),
    )
    try:
        with watch.polled():
            return supervision.run()
    except TerminationSignal:
        if (request := watch.requested()) is None:
            raise
        return supervision.stop(request, SAVE_SECONDS)


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu-small")
    parser.add_argument("--job", default="")
    arguments = parser.parse_args()
    train_nanogpt(preset=arguments.preset, job=arguments.job)
