"""Documents of Prefect's own block types, written through the API: importing Prefect takes longer than the request."""

from __future__ import annotations

from typing import Any

import httpx

from crucible.errors import ServiceError


def save_secret(api: httpx.Client, block: str, value: str) -> None:
    """Create the Secret block, or replace the value of the one that is there. Raises `ServiceError`."""
    save_block(api, "secret", block, {"value": value})


def save_block(api: httpx.Client, block_type: str, name: str, data: dict[str, Any]) -> str:
    """Create the block, or replace the data of the one that is there; returns its id. Raises `ServiceError`."""
    try:
        document = find_block(api, block_type, name)
        if document is not None:
            change = {"data": data, "merge_existing_data": False}
            api.patch(f"/block_documents/{document['id']}", json=change).raise_for_status()
            return str(document["id"])
        kind = api.get(f"/block_types/slug/{block_type}").raise_for_status().json()
        wanted = {"block_schemas": {"block_type_id": {"any_": [kind["id"]]}}}
        schemas = api.post("/block_schemas/filter", json=wanted).raise_for_status().json()
        if not schemas:
            raise ServiceError(
                f"this server has no schema of {block_type} blocks; run: prefect block register -m prefect.blocks"
            )
        new = {"name": name, "data": data, "block_schema_id": schemas[0]["id"], "block_type_id": kind["id"]}
        return str(api.post("/block_documents/", json=new).raise_for_status().json()["id"])
    except httpx.HTTPError as error:
        raise ServiceError(f"the Prefect server did not save the block {name}: {error}; see crucible doctor") from error


def find_block(api: httpx.Client, block_type: str, name: str) -> dict[str, Any] | None:
    """The block with that name, its secrets hidden; None if there is none."""
    found = api.get(f"/block_types/slug/{block_type}/block_documents/name/{name}")
    if found.status_code == httpx.codes.NOT_FOUND:
        return None
    document: dict[str, Any] = found.raise_for_status().json()
    return document
