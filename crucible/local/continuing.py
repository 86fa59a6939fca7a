"""Start a job or a sweep that stopped again, the way it was started before."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectException

from crucible.errors import ConfigError, ServiceError
from crucible.jobs.job import Job

CONFIGURED, SCRIPT = "train-nanogpt", "train-script"
"""The flow that supervises jobs with a configuration, and the one for scripts."""


def start_again(job: Job, changes: dict[str, Any]) -> str:
    """Run the deployment that last supervised the job again, with `changes` to its parameters; return the run's id.

    Raises `ConfigError` when no deployment started the job, `ServiceError` when the server does not answer.
    """
    supervisor = job.read_newest_supervisor()
    before = supervisor.flow_run_id if supervisor else ""
    spec = job.read_spec()
    if spec.code is not None:  # as it was packed: the folder that it came from may have changed since
        changes = {**changes, "code": spec.code.digest, "data": spec.code.data}
    flow = CONFIGURED if spec.script is None else SCRIPT
    return run_again(f"job {job.job_id}", before, flow, {"job": job.job_id, **changes})


def run_again(what: str, flow_run_id: str, flow: str, changes: dict[str, Any]) -> str:
    """Run the flow run's deployment again for `what` ("job x"); return the new run's id. Raises the same errors."""
    noun, name = what.split(" ", 1)
    again = f"start it with its parameters: prefect deployment run {flow} -p {noun}={name} …"
    if not flow_run_id:
        raise ConfigError(f"{what} was not started by a flow run; {again}")
    try:
        with get_client(sync_client=True) as client:
            before = client.read_flow_run(UUID(flow_run_id))
            found = client.read_flow(before.flow_id).name
            if before.deployment_id is None or found != flow:
                raise ConfigError(f"{what} was started by {found}, not by a deployment of {flow}; {again}")
            run = client.create_flow_run_from_deployment(
                before.deployment_id,
                parameters={**before.parameters, **changes},
                job_variables=before.job_variables or {},
            )
    except ObjectNotFound as error:
        raise ConfigError(f"this server does not know the flow run that carried out {what}; {again}") from error
    except (httpx.HTTPError, PrefectException) as error:
        raise ServiceError(f"the Prefect server did not start it: {error}; see crucible doctor") from error
    return str(run.id)
