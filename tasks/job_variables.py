"""What `prefect deployment run train-nanogpt -jv …` sets reaches the attempts, or is refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from prefect.client.orchestration import get_client
from prefect.runtime import flow_run

from crucible.errors import ConfigError

OF_THE_SUPERVISOR = frozenset({"command", "working_dir", "name", "stream_output"})
"""Variables that concern the supervising process alone."""


def given_for(pool: str) -> dict[str, Any]:
    """The job variables that the supervising run was started with, for an attempt on a pool.

    Raises:
        ConfigError: the pool has no variable of a name.
        ObjectNotFound: there is no such pool.
    """
    given = flow_run.job_variables or {}
    if not set(given) - OF_THE_SUPERVISOR:
        return {}
    with get_client(sync_client=True) as client:
        template = client.read_work_pool(pool).base_job_template
    return passed_on(given, template.get("variables", {}).get("properties", {}), pool)


def passed_on(given: Mapping[str, Any], known: Iterable[str], pool: str) -> dict[str, Any]:
    """Those of the given variables that go to an attempt. Raises `ConfigError` naming what the pool does not know."""
    wanted = {name: value for name, value in given.items() if name not in OF_THE_SUPERVISOR}
    if unknown := sorted(set(wanted) - set(known)):
        raise ConfigError(
            f"job variable {', '.join(unknown)}: the pool {pool} has none of that name; it has "
            f"{', '.join(sorted(set(known) - OF_THE_SUPERVISOR))}"
        )
    return wanted
