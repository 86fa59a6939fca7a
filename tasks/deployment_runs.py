"""Start a flow run of a deployment without waiting for it: attempts and stages on pools."""

from __future__ import annotations

from typing import Any

import httpx
from prefect.client.schemas.objects import FlowRun
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException

from crucible.errors import ServiceError


def start_run(deployment: str, *, missing: str, what: str, **options: Any) -> FlowRun:
    """Start it with the options of `run_deployment`.

    Raises `ServiceError`, with `missing` where the server has no such deployment, and with `what` did not start else.
    """
    try:
        run = run_deployment(deployment, timeout=0, **options)
    except ObjectNotFound as error:
        raise ServiceError(missing) from error
    except (httpx.HTTPError, PrefectException) as error:
        raise ServiceError(f"the Prefect server did not start {what}: {error}") from error
    assert isinstance(run, FlowRun)
    return run
