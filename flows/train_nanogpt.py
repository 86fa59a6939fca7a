"""`train-nanogpt`: preprocess → train → evaluate, whatever happens to the machines in between.

The front door: `prefect deployment run train-nanogpt`. This flow supervises: it runs on the light `local` pool, starts
every attempt as a flow run of `train/<pool>`, and decides from the attempt's record what comes next. Killed and
started again, it finds its job and carries on.

    python flows/train_nanogpt.py --preset debug     # the same without a deployment, against the current server
"""

from __future__ import annotations

from contextlib import suppress
from datetime import datetime
from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from crucible.config import TrainConfig
from crucible.datasets.build import find_unread
from crucible.datasets.finished import DatasetInfo, resolve_dataset
from crucible.datasets.meta import DatasetMeta, require_block_size
from crucible.errors import ConfigError, DataError
from crucible.estimate.ranking import Preferences
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec, now
from crucible.jobs.status import JobState, JobStatus, status_of
from crucible.placement.choice import AUTO, PlacementRequest
from crucible.resources import Resources
from flows.evaluate import evaluate
from flows.forms import takes
from flows.parameters import TrainRequest
from flows.preprocess import preprocess
from tasks.console import outlive_the_console
from tasks.costs import BudgetWatch
from tasks.early_bills import EarlyBills
from tasks.ending import end_as, without_heartbeat
from tasks.initial import Settled, settle
from tasks.placing import choose, placement_policy_for, saved_share
from tasks.stage_runs import StageOverBudget, StageRequest, run_stage
from tasks.supervising import SupervisedJob, supervised

HERE = "local"
"""The pool whose stages run in this flow's own process."""


def job_name() -> str:
    """The job's id: as given, or after the flow run, so that a flow run that is started again finds its job."""
    return flow_run.parameters.get("job") or f"nanogpt-{flow_run.id[:8]}"


@flow(name="train-nanogpt", flow_run_name=job_name)
@takes(TrainRequest)
def train_nanogpt(**given: Any) -> State:
    """Train a GPT to the end of its configuration, over as many machines as it takes."""
    outlive_the_console()
    request = TrainRequest(**given)
    spec = JobSpec(job_id=job_name(), project=request.project, owner=request.owner)
    return end_as(supervised(spec, request.store, lambda run: _train(request, run)))


def _train(request: TrainRequest, run: SupervisedJob) -> JobStatus:
    try:
        return _run_stages(request, run)
    except StageOverBudget as error:
        status = status_of(run.job)
        return JobStatus(state=JobState.BUDGET_STOP, reason=str(error), supervisor=status.supervisor if status else 0)


def _run_stages(request: TrainRequest, run: SupervisedJob) -> JobStatus:
    job, choice = run.job, run.read_choice()
    deadline = request.deadline(after=None if choice else now())
    run.track(request.tracker)
    start = _settled(request, run)
    config = start.config
    nodes = request.resources.node_range
    if request.pool != AUTO:
        request.resources.job_variables(request.pool)  # refuses what the pool cannot choose
    elif nodes.most > 1:
        raise ConfigError(
            f"resources: nodes = {nodes}: auto compares single machines; name the pool that several are to run on"
        )
    config.require_nodes(nodes.least)
    forked = run.read_forked()
    with EarlyBills(run) as bills:
        data = resolve_dataset(job.root, forked.dataset) if forked else _prepare(request, config, run, bills)
        start.require_dataset(data.meta)
        if choice is None:
            choice = choose(job.root, _placement_request(job, request, config, data.meta, deadline))
        made = {
            "config": config,
            "init_source": start.init_source,
            "dataset": data.digest,
            "resources": request.resources,
        }
        run.put_on_record(forked or run.spec.model_copy(update=made), request.limits(), choice)
    status = run.run_attempts(choice, placement_policy_for(choice, job, config))
    if status.state is JobState.COMPLETED:
        run.remember()
        if request.run_evaluation:
            _evaluate(request, run)
    return status


def _evaluate(request: TrainRequest, run: SupervisedJob) -> None:
    if request.evaluate_pool != HERE:
        run_stage(
            StageRequest(
                "evaluate",
                request.evaluate_pool,
                run.spec,
                {"job": run.job.job_id, "store": request.store},
                Resources(),
                max_cost_usd=_left_of(run.job.read_limits().max_cost_usd, run.job),
                record=run.job.write_stage,
                over_budget=BudgetWatch(run.job.root, request.project, request.owner),
                stop_requested=run.watch.requested,
            )
        )
        return
    with without_heartbeat():
        evaluate(job=run.job.job_id, store=request.store)


def _settled(request: TrainRequest, run: SupervisedJob) -> Settled:
    recorded = run.job.read_spec() if run.job.store.exists("job.json") else None
    if recorded is not None and recorded.forked_from is not None and recorded.config is not None:
        return Settled(recorded.config, recorded.init_source)
    return settle(request.draft(), run.job.root, (recorded.config, recorded.init_source) if recorded else (None, ""))


def _placement_request(
    job: Job, request: TrainRequest, config: TrainConfig, meta: DatasetMeta, deadline: datetime | None
) -> PlacementRequest:
    return PlacementRequest(
        job_id=job.job_id,
        config=config,
        dataset=meta,
        pool=request.pool,
        limits=request.limits(),
        preferences=Preferences(
            optimize_for=request.optimize_for,
            instance=request.resources.instance,
            gpus=request.resources.gpus,
            nodes=config.nodes_on(request.resources.node_range.most),
        ),
        project=request.project,
        owner=request.owner,
        finish_by=deadline,
        saved_share=saved_share(job, config.max_iters),
    )


def _prepare(request: TrainRequest, config: TrainConfig, run: SupervisedJob, bills: EarlyBills) -> DatasetInfo:
    """The job's dataset, in the store. What a machine for it costs is in `bills`: the job is not on record yet."""
    if request.preprocess_pool != HERE and not _is_in_the_store(request, run.job):
        run.job.root.require_guarantees()  # a store that cannot hold the job is refused before a machine is paid for
        run_stage(
            StageRequest(
                "preprocess",
                request.preprocess_pool,
                run.spec,
                {"dataset": request.dataset.model_dump(mode="json", exclude_unset=True), "store": request.store},
                Resources(gpus=0),
                max_cost_usd=bills.left_usd(_left_of(request.max_cost_usd, run.job)),
                record=bills.record,
                over_budget=BudgetWatch(run.job.root, request.project, request.owner),
                stop_requested=run.watch.requested,
            )
        )
    with without_heartbeat():  # finds what another pool has built
        data = resolve_dataset(run.job.root, preprocess(dataset=request.dataset, store=request.store))
    require_block_size(data.meta, config.block_size)
    return data


def _is_in_the_store(request: TrainRequest, job: Job) -> bool:
    """Whether no machine is needed: this process finds the dataset without reading the text."""
    with suppress(DataError):  # the preprocessing reports it
        return find_unread(request.dataset, job.root) is not None
    return False


def _left_of(cap: float | None, job: Job) -> float | None:
    return None if cap is None else cap - job.cost_usd()


if __name__ == "__main__":
    import argparse

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--preset", default="cpu-small")
    parser.add_argument("--job", default="")
    arguments = parser.parse_args()
    train_nanogpt(preset=arguments.preset, job=arguments.job)
