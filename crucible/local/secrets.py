"""Prefect Secret blocks, written through the API: importing Prefect takes longer than the request."""

from __future__ import annotations

import httpx

from crucible.errors import ServiceError


def save_secret(api: httpx.Client, block: str, value: str) -> None:
    """Create the Secret block, or replace the value of the one that is there. Raises `ServiceError`."""
    try:
        found = api.get(f"/block_types/slug/secret/block_documents/name/{block}")
        if found.status_code != httpx.codes.NOT_FOUND:
            document = found.raise_for_status().json()
            api.patch(f"/block_documents/{document['id']}", json={"data": {"value": value}}).raise_for_status()
            return
        kind = api.get("/block_types/slug/secret").raise_for_status().json()
        wanted = {"block_schemas": {"block_type_id": {"any_": [kind["id"]]}}}
        schemas = api.post("/block_schemas/filter", json=wanted).raise_for_status().json()
        if not schemas:
            raise ServiceError(
                "this server has no schema of Secret blocks; run: prefect block register -m prefect.blocks"
            )
        document = {
            "name": block,
            "data": {"value": value},
            "block_schema_id": schemas[0]["id"],
            "block_type_id": kind["id"],
        }
        api.post("/block_documents/", json=document).raise_for_status()
    except httpx.HTTPError as error:
        raise ServiceError(f"the Prefect server did not save the secret: {error}; see crucible doctor") from error
