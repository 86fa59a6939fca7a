"""`train-nanogpt`: preprocess → train → evaluate, whatever happens to the machines in between.

The front door: `prefect deployment run train-nanogpt`. This flow supervises: it runs on the light `local` pool, starts
every attempt as a flow run of `train/<pool>`, and decides from the attempt's record what comes next. Killed and
started again, it finds its job and carries on.

    python flows/train_nanogpt.py --preset debug     # the same without a deployment, against the current server
"""

from __future__ import annotations

from typing import Literal

from prefect import flow, tags
from prefect.client.schemas.objects import State
from prefect.exceptions import Abort, TerminationSignal
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Cancelled, Failed
from pydantic import Field

from crucible.config import TrainConfig
from crucible.datasets.build import DatasetInfo, resolve_dataset
from crucible.datasets.config import DatasetConfig
from crucible.datasets.meta import require_block_size
from crucible.errors import CrucibleError, FencedOut
from crucible.estimate.for_job import remember_job
from crucible.estimate.history import remember_plan
from crucible.estimate.ranking import Preferences
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec, Limits, now
from crucible.jobs.status import JobState, JobStatus
from crucible.moments import moment_to_come
from crucible.placement.choice import Choice, PlacementRequest, read_choice, remember_choice
from crucible.store import Store
from crucible.supervision.heartbeat import HeartbeatWriter
from crucible.supervision.retry_policy import Timeouts
from crucible.supervision.supervisor import Supervision
from flows.evaluate import evaluate
from flows.parameters import Pool, Preset, TrainOverrides, resolve
from flows.preprocess import preprocess
from tasks.console import outlive_the_console
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
def train_nanogpt(
    preset: Preset = Field("cpu-small", description="Which shipped configuration to start from."),
    config: TrainOverrides = Field(  # type: ignore[valid-type]
        TrainOverrides(), description="What differs from the preset, by nanoGPT's key names."
    ),
    dataset: DatasetConfig = Field(DatasetConfig(), description="The text to train on and its tokenizer."),
    pool: Pool | Literal["auto"] = Field(
        "local", description="Where to train. auto: the best of the pools that are ready, by what optimize_for says."
    ),
    optimize_for: Literal["cost", "time", "balanced"] = Field("balanced", description="What comes first, for auto."),
    job: str = Field("", description="The job's name. Empty: a new one. An existing one is continued."),
    max_attempts: int = Field(50, ge=1, description="Stop after so many attempts."),
    max_cost_usd: float | None = Field(
        None, gt=0, description="Stop, saved, before the job costs more. Empty: no cap."
    ),
    max_hours: float | None = Field(
        None, gt=0, description="Stop, saved, so many hours after the start. Empty: no cap."
    ),
    finish_by: str = Field(
        "", description="Be done by then: a time with its zone, such as 2026-05-07T18:00+02:00. Empty: no deadline."
    ),
    run_evaluation: bool = Field(True, description="Evaluate and export the model at the end."),
    project: str = Field("default", description="Whose money it is: shown in cost reports."),
    owner: str = Field("", description="Who started it: shown in cost reports."),
    store: str = Field("default", description="Name of a Store block, or an address (file://…, s3://…)."),
) -> State:
    """Train a GPT to the end of its configuration, over as many machines as it takes."""
    outlive_the_console()
    try:
        limits = Limits(max_attempts=max_attempts, max_cost_usd=max_cost_usd, max_hours=max_hours)
        spec = JobSpec(job_id=job_name(), project=project, owner=owner)
        placed = open_store(store)
        job_record = Job(placed, spec.job_id)
        # For a flow run that is restarted the choice is on record, and its deadline may have passed.
        choice = read_choice(job_record, flow_run.id or "")
        deadline = moment_to_come(finish_by, None if choice else now()) if finish_by else None
        marks = job_tags(spec)
        with (
            tags(*marks),
            StopWatch(job_record) as watch,
            HeartbeatWriter(placed, flow_run.id or "", spec.job_id) as heartbeat,
        ):
            add_tags(*marks, "stage:pipeline")
            try:
                resolved = resolve(preset, config)
                data = _prepare(resolved, dataset, placed, store)
                first_choice = choice is None
                if choice is None:
                    request = PlacementRequest(
                        job_id=spec.job_id,
                        config=resolved,
                        dataset=data.meta,
                        pool=pool,
                        limits=limits,
                        preferences=Preferences(optimize_for=optimize_for),
                        project=project,
                        owner=owner,
                        finish_by=deadline,
                        saved_share=saved_share(job_record, resolved.max_iters),
                    )
                    choice = choose(placed, request)
                # Not before: a run that is refused leaves no job behind whose name is taken.
                _put_on_record(spec, limits, resolved, data.digest, placed)
                if first_choice:
                    remember_choice(job_record, flow_run.id or "", choice)
                if choice.planned:
                    remember_plan(job_record, choice.planned)
                status = _supervise(job_record, choice, resolved, store, watch)
                if status.state is JobState.COMPLETED:
                    remember_job(job_record)
                    if run_evaluation:
                        with without_heartbeat():
                            evaluate(job=job_record.job_id, store=store)
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
        newest = Job(placed, spec.job_id).read_newest_supervisor()
        if newest is not None and newest.flow_run_id == flow_run.id:
            raise Abort(str(error)) from error  # this very flow run was started again: its state is not ours to set
        state = Cancelled(name="Superseded", message=str(error))
    except CrucibleError as error:
        get_run_logger().error(str(error))
        state = Failed(message=str(error))
    return end_as(state)


def _prepare(config: TrainConfig, dataset: DatasetConfig, placed: Store, store: str) -> DatasetInfo:
    """The job's dataset, in the store."""
    with without_heartbeat():
        data = resolve_dataset(placed, preprocess(dataset=dataset, store=store))
    require_block_size(data.meta, config.block_size)
    return data


def _put_on_record(spec: JobSpec, limits: Limits, config: TrainConfig, dataset: str, placed: Store) -> None:
    """The job, new or as it is there already."""
    trained = {"config": config.model_dump(mode="json"), "config_digest": config.digest(), "dataset": dataset}
    job = Job.create(placed, spec.model_copy(update=trained))
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
