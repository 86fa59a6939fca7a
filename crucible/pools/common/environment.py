"""Which of the worker's own Prefect settings a flow run on another machine gets: one list for all pools.

A worker may share its environment with a Prefect server. The server's folder, database and passwords must stay there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar
from urllib.parse import urlsplit

V = TypeVar("V")

_PASSES = re.compile(
    r"PREFECT_(_|API_(URL|KEY|AUTH_STRING|TLS_INSECURE_SKIP_VERIFY|REQUEST_TIMEOUT|ENABLE_HTTP2)$|CLIENT_|CLOUD_API_"
    r"|FLOWS_|TASKS_|LOGGING_(?!CONFIG_PATH)|RESULTS_(?!LOCAL_STORAGE_PATH)|RUNNER_(?!SERVER_)|PLUGINS_)"
)
CREDENTIALS = ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING")
"""What a flow run shows to the Prefect API. In the request for an ECS task everybody who may describe tasks reads it,
so there it comes from AWS Secrets Manager."""
HEADERS = "PREFECT_CLIENT_CUSTOM_HEADERS"
API_URL = "PREFECT_API_URL"


def revealing(environment: Mapping[str, str | None], asked_for: set[str]) -> str | None:
    """What in a request that others may read would give a password away, and what to do instead; None: nothing."""
    if environment.get(HEADERS) and HEADERS not in asked_for:
        return f"{HEADERS} may hold a password, and a task's environment can be read; if it holds none, set it in env"
    if urlsplit(environment.get(API_URL) or "").password is not None:
        return f"{API_URL} holds a password; put it into PREFECT_API_AUTH_STRING"
    return None


def passing(environment: Mapping[str, V], asked_for: set[str]) -> dict[str, V]:
    """What of a prepared flow run's environment leaves this machine: what pool or run ask for, and what may pass."""
    return {name: value for name, value in environment.items() if name in asked_for or _PASSES.match(name)}
