"""Which of the worker's own Prefect settings a flow run on another machine gets: one list for all pools.

A worker may share its environment with a Prefect server. The server's folder, database and passwords must stay there.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import TypeVar

V = TypeVar("V")

_PASSES = re.compile(
    r"PREFECT_(_|API_(URL|KEY|AUTH_STRING|TLS_INSECURE_SKIP_VERIFY|REQUEST_TIMEOUT|ENABLE_HTTP2)$|CLIENT_|CLOUD_API_"
    r"|FLOWS_|TASKS_|LOGGING_(?!CONFIG_PATH)|RESULTS_(?!LOCAL_STORAGE_PATH)|RUNNER_(?!SERVER_)|PLUGINS_)"
)
CREDENTIALS = ("PREFECT_API_KEY", "PREFECT_API_AUTH_STRING")
"""What a flow run shows to the Prefect API. In the request for an ECS task everybody who may describe tasks reads it,
so there it comes from AWS Secrets Manager."""


def passing(environment: Mapping[str, V], asked_for: set[str]) -> dict[str, V]:
    """What of a prepared flow run's environment leaves this machine: what pool or run ask for, and what may pass."""
    return {name: value for name, value in environment.items() if name in asked_for or _PASSES.match(name)}
