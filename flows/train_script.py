"""`train-script`: a script of your own, whatever happens to the machines it runs on.

`crucible run -- python train.py` starts it from a folder; from Prefect: `prefect deployment run train-script`. Like
`train-nanogpt`, this flow supervises: every attempt is a flow run of `train/<pool>`.
"""

from __future__ import annotations

from typing import Any

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.runtime import flow_run

from crucible.estimate.for_job import remember_job
from crucible.jobs.records import JobSpec, now
from crucible.jobs.status import JobState, JobStatus
from crucible.placement.overflow import OverflowPolicy
from crucible.placement.script import place_script
from flows.forms import takes
from flows.parameters import TrainScriptRequest
from tasks.console import outlive_the_console
from tasks.ending import end_as
from tasks.placing import pools_now
from tasks.scripts import resolve
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
    spec = JobSpec(job_id=job_name(), project=request.project, owner=request.owner)
    return end_as(supervised(spec, request.store, lambda run: _run(request, run)))


def _run(request: TrainScriptRequest, run: SupervisedJob) -> JobStatus:
    choice = run.read_choice()
    if choice is None:
        choice = place_script(request.pool, request.resources)
        script, code = resolve(run.job.root, request.code, request.data, request.given())
        made = {"script": script, "code": code, "resources": request.resources}
        run.put_on_record(run.spec.model_copy(update=made), request.limits(now()), choice)
    status = run.run_attempts(choice, OverflowPolicy(choice.placements, pools_now))
    if status.state is JobState.COMPLETED:
        remember_job(run.job)
    return status
