"""Start a job or a sweep that stopped again, the way it was started before."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from typing import Any
from uuid import UUID, uuid4

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.exceptions import ObjectNotFound, PrefectException

from crucible.errors import ConfigError, ServiceError, StartUnknown
from crucible.jobs.job import Job
from crucible.jobs.limits import change_limits
from crucible.jobs.names import sweep_in_name
from crucible.jobs.records import JobSpec, now
from crucible.jobs.status import JobState, status_of
from crucible.moments import moment_to_come
from crucible.placement.choice import read_choice
from crucible.script_config import ScriptConfig
from crucible.store import store_option
from crucible.supervision.heartbeat import is_supervised

CONFIGURED, SCRIPT = "train-nanogpt", "train-script"
"""The flow that supervises jobs with a configuration, and the one for scripts."""


def continue_job(job: Job, limits: Mapping[str, Any], finish_by: str | None = None) -> str:
    """Start a job again that stopped, failed or was cancelled, with new limits where given; returns the flow run's id.

    What it had saved is where it goes on. `limits`: see `change_limits`; `finish_by`: a new deadline with its zone, or
    `none`. Raises `ConfigError` while the job runs, for a stage or a trial, and as `start_again` does.
    """
    status = status_of(job)
    if status is not None and status.state is JobState.RUNNING and is_supervised(job.root, job.job_id):
        raise ConfigError(
            f"job {job.job_id} is running; `crucible jobs limits {job.job_id}{store_option(job.root)}` changes its "
            f"limits while it does"
        )
    if finish_by is not None and finish_by.lower() != "none":
        moment_to_come(finish_by, now())  # refused here, rather than by the run that it would start
    _require_own_life(job)
    changes: dict[str, Any] = change_limits(job, limits).model_dump(
        include={"max_cost_usd", "max_hours", "max_attempts"}
    )
    if finish_by is not None:
        changes["finish_by"] = "" if finish_by.lower() == "none" else finish_by
    return start_again(job, changes)


def start_again(job: Job, changes: dict[str, Any]) -> str:
    """Run the deployment that last supervised the job again, with `changes` to its parameters; return the run's id.

    Raises `ConfigError` when no deployment started the job, `ServiceError` when the server does not answer.
    """
    supervisor = job.read_newest_supervisor()
    before = supervisor.flow_run_id if supervisor else ""
    spec = job.read_spec()
    if spec.script is not None:
        changes = {**script_parameters(job, spec, spec.script, before), **changes}
    flow = CONFIGURED if spec.script is None else SCRIPT
    return run_again(f"job {job.job_id}", before, flow, {"job": job.job_id, **changes})


def _require_own_life(job: Job) -> None:
    """Raise `ConfigError` for a job that goes on only with the job or the sweep that it is a part of."""
    spec = job.read_spec()
    where = store_option(job.root)
    if spec.script is not None and spec.stage != "train":
        whole = spec.sweep or spec.prepares or spec.evaluates
        raise ConfigError(
            f"job {job.job_id} is the stage {spec.stage} of {whole} and goes on with it: "
            f"`{spec.continue_command}{where}`"
        )
    if (sweep := _sweep_of(job)) is not None:
        raise ConfigError(
            f"job {job.job_id} is a trial of sweep {sweep}, which decides how far it trains; continue the sweep: "
            f"`crucible sweeps continue {sweep}{where}`"
        )


def script_parameters(job: Job, spec: JobSpec, script: ScriptConfig, flow_run_id: str) -> dict[str, Any]:
    """All of a script's job as it is on record: the folder that it came from may have changed since, or be gone."""
    choice = read_choice(job, flow_run_id) if flow_run_id else None
    return {
        "command": shlex.join(script.command),
        "workload": "",
        "script": script.model_dump(mode="json", exclude_defaults=True, exclude={"command"}),
        "code": spec.code.digest if spec.code else "",
        "data": spec.code.data if spec.code else {},
        "resources": spec.resources.model_dump(mode="json", exclude_defaults=True),
        "preprocess": spec.preprocess.model_dump(mode="json") if spec.preprocess else None,
        "evaluate": spec.evaluate.model_dump(mode="json") if spec.evaluate else None,
        "project": spec.project,
        "owner": spec.owner,
        **({"pool": choice.placements[0].pool} if choice else {}),
    }


def _sweep_of(job: Job) -> str | None:
    """The sweep that the job is a trial of."""
    if of_script := job.read_spec().sweep:
        return of_script
    sweep = sweep_in_name(job.job_id)
    return sweep if sweep and job.root.exists(f"sweeps/{sweep}/sweep.json") else None


def run_again(what: str, flow_run_id: str, flow: str, changes: dict[str, Any], key: str = "") -> str:
    """Run the flow run's deployment again for `what` ("job x"); return the new run's id. Raises the same errors.

    The same `key` gives the same run; see `create_run`.
    """
    noun, name = what.split(" ", 1)
    again = f"start {flow} with the parameters that it had, {noun} = {name} among them: it goes on where it was saved"
    if not flow_run_id:
        raise ConfigError(f"{what} was not started by a flow run; start the program again that made it")
    try:
        with get_client(sync_client=True) as client:
            before = client.read_flow_run(UUID(flow_run_id))
            found = client.read_flow(before.flow_id).name
            if before.deployment_id is None or found != flow:
                by = f"{found}, not by a deployment of {flow}"
                raise ConfigError(f"{what} was started by {by}; start that again with the parameters that it had")
            return create_run(
                client,
                before.deployment_id,
                key,
                parameters={**before.parameters, **changes},
                job_variables=before.job_variables or {},
            )
    except ObjectNotFound as error:
        raise ConfigError(f"this server does not know the flow run that carried out {what}; {again}") from error
    except (httpx.HTTPError, PrefectException) as error:
        raise ServiceError(f"the Prefect server did not start it: {error}; see crucible doctor") from error


def create_run(client: SyncPrefectClient, deployment: UUID, key: str = "", **options: Any) -> str:
    """Create a flow run of a deployment and return its id: one run, however often Prefect's client repeats the request.

    The same `key` gives the same run in a later call, too. `options`: those of `create_flow_run_from_deployment`.
    Raises `StartUnknown` when no answer says whether there is a run, else what Prefect's client raises.
    """
    try:
        run = client.create_flow_run_from_deployment(deployment, idempotency_key=key or uuid4().hex, **options)
    except httpx.HTTPError as error:
        if isinstance(error, httpx.HTTPStatusError) and error.response.is_client_error:
            raise
        raise StartUnknown(
            f"the Prefect server gave no answer ({error or type(error).__name__}), so it may have started the run or "
            "not; see crucible doctor"
        ) from error
    return str(run.id)
