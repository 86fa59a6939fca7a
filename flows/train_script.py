"""`train-script`: a script of your own, whatever happens to the machines it runs on.

`crucible run -- python train.py` starts it from a folder; from Prefect: `prefect deployment run train-script`. Like
`train-nanogpt`, this flow supervises: every attempt is a flow run of `train/<pool>`.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from crucible.jobs.records import JobSpec, now
from crucible.jobs.stage_records import stage_name
from crucible.jobs.status import JobState, JobStatus
from crucible.placement.overflow import OverflowPolicy
from crucible.placement.script import place_script
from crucible.run_config import RunConfig
from flows.forms import takes
from flows.parameters import TrainScriptRequest
from tasks.console import outlive_the_console
from tasks.ending import end_as, failing
from tasks.placing import pools_now
from tasks.script_stages import evaluate, preprocess
from tasks.scripts import job_limits, read_config_again, resolve
from tasks.supervising import SupervisedJob, supervised


def job_name() -> str:
    """The job's id: as given, or after the flow run, so that a flow run that is started again finds its job."""
    return flow_run.parameters.get("job") or f"script-{flow_run.id[:8]}"


@flow(name="train-script", flow_run_name=job_name)
@takes(TrainScriptRequest)
def train_script(**given: Any) -> State:
    """Run a script to its end, over as many machines as it takes."""
    outlive_the_console()
    request = TrainScriptRequest(**given)
    return end_as(failing(lambda: _supervise(request)))


def _supervise(request: TrainScriptRequest) -> State:
    config = read_config_again(request.code, request.given())
    spec = JobSpec(job_id=job_name(), project=config.project, owner=config.owner)
    return supervised(spec, config.store, lambda run: _run(request, config, run))


def _run(request: TrainScriptRequest, config: RunConfig, run: SupervisedJob) -> JobStatus:
    choice = run.read_choice()
    run.track(config.tracker)
    if choice is None:
        choice = place_script(config.pool, config.resources)
        spec = run.read_forked() or _spec(request, config, run)
        run.put_on_record(spec, job_limits(config, now()), choice)
    trained_on = choice.placements[0].pool
    prepared = preprocess(run, trained_on)
    if prepared is not None and prepared.state is not JobState.COMPLETED:
        return prepared
    status = run.run_attempts(choice, OverflowPolicy(choice.placements, pools_now))
    if status.state is not JobState.COMPLETED:
        return status
    run.remember()
    stage = run.job.read_spec().evaluate
    return evaluate(run, status, trained_on, stage) if stage else status


def _spec(request: TrainScriptRequest, config: RunConfig, run: SupervisedJob) -> JobSpec:
    """What the request makes of the job; its code is in the store afterwards."""
    script, code = resolve(run.job.root, request.code, request.data, config)
    made = {
        "script": script,
        "code": code,
        "resources": config.resources,
        "preprocess": config.preprocess,
        "evaluate": config.evaluate,
        "prepared_by": stage_name(run.spec.job_id, "preprocess") if config.preprocess else "",
    }
    return run.spec.model_copy(update=made)
