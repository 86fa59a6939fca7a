"""Start a deployment on the Prefect server."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from crucible.errors import ConfigError, ServiceError


def start_flow_run(api: httpx.Client, deployment: str, parameters: Mapping[str, Any], name: str) -> str:
    """Start the deployment `deployment/deployment`, the run named `name`; returns the flow run's id.

    Raises `ConfigError` when the server refuses the parameters, `ServiceError` when it has no such deployment or does
    not answer.
    """
    try:
        found = api.get(f"/deployments/name/{deployment}/{deployment}")
        if found.status_code == httpx.codes.NOT_FOUND:
            raise ServiceError(f"the server has no deployment {deployment}/{deployment}; run: crucible up")
        created = api.post(
            f"/deployments/{found.raise_for_status().json()['id']}/create_flow_run",
            json={"parameters": dict(parameters), "state": {"type": "SCHEDULED"}, "name": name},
        )
        if created.status_code in (httpx.codes.CONFLICT, httpx.codes.UNPROCESSABLE_ENTITY):
            raise ConfigError(f"the server refused the run: {created.json().get('detail', created.text)}")
        return str(created.raise_for_status().json()["id"])
    except httpx.HTTPError as error:
        raise ServiceError(f"the Prefect server did not start the run: {error}; see crucible doctor") from error
