"""Work pools beyond this machine, each with deployments `train/<pool>`, `preprocess/<pool>` and `evaluate/<pool>`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Any

import httpx

from crucible.errors import ConfigError, ServiceError
from crucible.pools.common.offered import settings_of

FLOW = "train"
MODEL = "local"
"""`train/local`, which `crucible up` deploys, is what every `train/<pool>` takes its parameters from."""
STAGES = ("preprocess", "evaluate")
"""Modelled on `preprocess/preprocess` and `evaluate/evaluate`, where the server has them."""
PULL_STEPS = [{"prefect.deployments.steps.set_working_directory": {"directory": "."}}]
"""The code is in the image's working directory; without this step Prefect would first copy all of it."""


def register(
    name: str,
    kind: str,
    template: Callable[[Mapping[str, Any]], dict[str, Any]],
    *,
    runs: str,
    deploy: bool = True,
    **fields: Any,
) -> str:
    """Create or update a pool on the server of `PREFECT_API_URL` and deploy its flows to it; returns the name.

    Args:
        kind: the type of worker that serves it.
        template: makes the base job template from the settings that the pool has been given until now.
        runs: what the deployment's description says of an attempt there, like "in a container".
        deploy: False leaves the deployment out.
        fields: the pool's other fields: `description`, `concurrency_limit`, `is_paused`. A field that is not named
            keeps its value.

    Raises:
        ConfigError: no server is selected, or `train/local`, which the deployment is modelled on, is not there.
        ServiceError: the server does not answer.
    """
    require_server()
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    with get_client(sync_client=True) as client:
        models = _models(client) if deploy else {}
        try:
            former = client.read_work_pool(name)
            made = template(settings_of(former.base_job_template))
            client.update_work_pool(name, WorkPoolUpdate(base_job_template=made, **fields))
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=template({}), **fields))
        for flow, model in models.items():
            what = "One attempt at a job" if flow == FLOW else f"The stage {flow}"
            client.create_deployment(  # an upsert by flow and name
                flow_id=model.flow_id,
                name=name,
                description=f"{what} {runs}; started by train-nanogpt.",
                work_pool_name=name,
                entrypoint=model.entrypoint,
                pull_steps=PULL_STEPS,
                parameter_openapi_schema=model.parameter_openapi_schema,
                enforce_parameter_schema=True,
                tags=model.tags,
            )
    return name


def require_server() -> None:
    """Ask the selected server once: without one Prefect starts its own, and a dead one it tries for a minute.

    Raises `ConfigError` and `ServiceError` as `register` does.
    """
    from prefect.settings import PREFECT_API_URL

    url = PREFECT_API_URL.value()
    if not url:
        raise ConfigError("no Prefect server is selected; run `crucible up`, or set PREFECT_API_URL")
    try:
        answer = httpx.get(f"{url}/health", timeout=10)
        if answer.is_server_error or answer.status_code == httpx.codes.NOT_FOUND:
            answer.raise_for_status()  # any other no is a gateway's, which wants headers that only Prefect's client has
    except httpx.HTTPError as error:
        raise ServiceError(
            f"PREFECT_API_URL = {url!r}: the Prefect server does not answer ({error}); start it with `crucible up`, or "
            "select another"
        ) from None


def _models(client: Any) -> dict[str, Any]:
    """What a pool's deployments are modelled on, by flow."""
    from prefect.exceptions import ObjectNotFound

    found = {}
    for stage in STAGES:
        with suppress(ObjectNotFound):
            found[stage] = client.read_deployment_by_name(f"{stage}/{stage}")
    try:
        return {FLOW: client.read_deployment_by_name(f"{FLOW}/{MODEL}"), **found}
    except ObjectNotFound as error:
        raise ConfigError(
            f"{FLOW}/{MODEL} is not deployed on this Prefect server: run `crucible up` (or `prefect --no-prompt deploy "
            "--all`) first"
        ) from error
