"""Start a deployment on the Prefect server."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any
from uuid import uuid4

import httpx

from crucible.errors import ConfigError, ServiceError, StartUnknown

PAUSES_SECONDS = (1.0, 3.0)
"""Before the request is repeated, where its answer got lost."""


def start_flow_run(api: httpx.Client, deployment: str, parameters: Mapping[str, Any], name: str) -> str:
    """Start the deployment `deployment/deployment`, the run named `name`; returns the flow run's id.

    It is one run, also where an answer gets lost. Raises `ConfigError` when the server refuses the parameters,
    `StartUnknown` when no answer says whether there is a run, `ServiceError` when the server has no such deployment or
    does not answer.
    """
    try:
        found = api.get(f"/deployments/name/{deployment}/{deployment}")
        if found.status_code == httpx.codes.NOT_FOUND:
            raise ServiceError(f"the server has no deployment {deployment}/{deployment}; run: crucible up")
        path = f"/deployments/{found.raise_for_status().json()['id']}/create_flow_run"
    except httpx.HTTPError as error:
        raise ServiceError(f"the Prefect server did not start the run: {error}; see crucible doctor") from error
    given = {"parameters": dict(parameters), "state": {"type": "SCHEDULED"}, "name": name}
    try:
        created = _create(api, path, {**given, "idempotency_key": uuid4().hex})
    except httpx.HTTPError as error:
        raise StartUnknown(
            f"the Prefect server gave no answer ({error or type(error).__name__}): it may have started the run {name} "
            "or not; see crucible doctor, and crucible jobs ls before you start it again"
        ) from error
    if created.status_code in (httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY):
        raise ConfigError(f"the server refused the run: {created.json().get('detail', created.text)}")
    try:
        return str(created.raise_for_status().json()["id"])
    except httpx.HTTPError as error:
        raise ServiceError(f"the Prefect server did not start the run: {error}; see crucible doctor") from error


def _create(api: httpx.Client, path: str, body: Mapping[str, Any]) -> httpx.Response:
    """The server's answer, asked again with the same key while there is none. Raises the last `httpx.HTTPError`."""
    for pause in (*PAUSES_SECONDS, None):
        try:
            answer = api.post(path, json=body)
            return answer.raise_for_status() if answer.is_server_error else answer
        except httpx.HTTPError:
            if pause is None:
                raise
            time.sleep(pause)
    raise AssertionError("the last try returns or raises")
