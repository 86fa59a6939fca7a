"""Start a flow run of a deployment without waiting for it: attempts and stages on pools."""

from __future__ import annotations

from contextlib import suppress
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.deployments import run_deployment
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import Cancelled, Cancelling

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


def cancel_run(run: FlowRun, message: str) -> None:
    """Let the run's worker end it; one that no worker has begun with is over at once."""
    waits = run.state is not None and run.state.type in (StateType.SCHEDULED, StateType.PENDING)
    state: State = Cancelled(message=message) if waits else Cancelling(message=message)
    with suppress(httpx.HTTPError, PrefectException), get_client(sync_client=True) as client:
        client.set_flow_run_state(run.id, state, force=True)
