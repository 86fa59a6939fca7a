"""Which Prefect server this is: an id that lives and dies with its database, as a Prefect variable.

Two servers, or one before and after its database was reset, know different flow runs. A heartbeat that names the id is
touched only by whoever asks the same server.
"""

from __future__ import annotations

import uuid

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import VariableCreate
from prefect.exceptions import ObjectAlreadyExists, PrefectException, PrefectHTTPStatusError

VARIABLE = "crucible_server_id"


def server_id() -> str:
    """The id of the server in `PREFECT_API_URL`; empty when it cannot be asked."""
    try:
        with get_client(sync_client=True) as client:
            found = client.read_variable_by_name(VARIABLE)
            if found is None:
                try:
                    found = client.create_variable(VariableCreate(name=VARIABLE, value=uuid.uuid4().hex))
                except (ObjectAlreadyExists, PrefectHTTPStatusError):  # by another process, just now
                    found = client.read_variable_by_name(VARIABLE)
    except (httpx.HTTPError, PrefectException):
        return ""
    return str(found.value) if found else ""
