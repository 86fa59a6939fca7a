"""A Tracker block, read through the API: importing Prefect takes longer than the request."""

from __future__ import annotations

import httpx

from crucible.errors import ConfigError, ServiceError
from crucible.trackers.config import TrackerConfig, TrackerKind

BLOCK_TYPE = "crucible-tracker"


def read_block(api: httpx.Client, name: str) -> TrackerConfig:
    """The tracker that the block of that name describes.

    Raises `ConfigError` when there is none, `ServiceError` when the server does not answer.
    """
    try:
        found = api.get(f"/block_types/slug/{BLOCK_TYPE}/block_documents/name/{name}", params={"include_secrets": True})
        if found.status_code == httpx.codes.NOT_FOUND:
            raise ConfigError(
                f"--tracker: there is no Tracker block {name!r}; save one, or use {', '.join(TrackerKind)}"
            )
        return TrackerConfig.parse({"name": name, **found.raise_for_status().json()["data"]}, source=name)
    except httpx.HTTPError as error:
        raise ServiceError(f"the Prefect server did not answer for the Tracker block {name}: {error}") from error
