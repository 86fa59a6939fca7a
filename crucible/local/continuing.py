"""A job that stopped is started again as it was started before."""

from __future__ import annotations

from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectException

from crucible.errors import ConfigError, ServiceError
from crucible.jobs import Job

FLOW = "train-nanogpt"


def start_again(job: Job, changes: dict[str, Any]) -> str:
    """A new run of the deployment that supervised the job last, with its parameters but for `changes`; returns its id.

    Raises `ConfigError` when no deployment started the job, `ServiceError` when the server does not answer.
    """
    supervisor = job.newest_supervisor()
    again = f"start it with its parameters: prefect deployment run {FLOW} -p job={job.job_id} …"
    if supervisor is None or not supervisor.flow_run_id:
        raise ConfigError(f"job {job.job_id} was not started by a flow run; {again}")
    try:
        with get_client(sync_client=True) as client:
            before = client.read_flow_run(UUID(supervisor.flow_run_id))
            flow = client.read_flow(before.flow_id).name
            if before.deployment_id is None or flow != FLOW:
                raise ConfigError(f"job {job.job_id} was started by {flow}, not by a deployment of {FLOW}; {again}")
            parameters = {**before.parameters, "job": job.job_id, **changes}
            run = client.create_flow_run_from_deployment(before.deployment_id, parameters=parameters)
    except ObjectNotFound as error:
        raise ConfigError(f"this server does not know the flow run that supervised {job.job_id}; {again}") from error
    except (httpx.HTTPError, PrefectException) as error:
        raise ServiceError(f"the Prefect server did not start it: {error}; see crucible doctor") from error
    return str(run.id)
