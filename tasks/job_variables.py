"""What `prefect deployment run train-nanogpt -jv …` sets reaches the attempts, or is refused by name."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import suppress
from typing import Any

from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound
from prefect.runtime import flow_run
from prefect.utilities.templating import find_placeholders

from crucible.errors import ConfigError
from crucible.jobs.job import Job

OF_THE_SUPERVISOR = frozenset({"command", "working_dir", "name", "stream_output"})
"""Variables that concern the supervising process alone."""


def given_to_this_run() -> dict[str, Any]:
    """What this supervising run was started with for the attempts."""
    given = flow_run.job_variables or {}
    return {name: value for name, value in given.items() if name not in OF_THE_SUPERVISOR}


def variables_of(job: Job) -> dict[str, Any]:
    """What this run was given; where that is nothing, what the job has on record."""
    return given_to_this_run() or job.read_variables()


def remember_variables(job: Job) -> None:
    """Put what this run was given on record, for a run that continues the job."""
    if given := given_to_this_run():
        job.set_variables(given)


def require_known(wanted: Mapping[str, Any], pools: Iterable[str]) -> None:
    """Refuse variables that one of the pools does not have, before anything is launched. Raises `ConfigError`."""
    for pool in dict.fromkeys(pools if wanted else ()):
        with suppress(ObjectNotFound):  # reported when an attempt is launched there
            _for_pool(wanted, pool)


def given_for(job: Job, pool: str) -> dict[str, Any]:
    """The variables for an attempt on a pool.

    Raises:
        ConfigError: the pool has no variable of a name.
        ObjectNotFound: there is no such pool.
    """
    wanted = variables_of(job)
    return _for_pool(wanted, pool) if wanted else {}


def _for_pool(wanted: Mapping[str, Any], pool: str) -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        return passed_on(wanted, client.read_work_pool(pool).base_job_template, pool)


def passed_on(wanted: Mapping[str, Any], template: Mapping[str, Any], pool: str) -> dict[str, Any]:
    """The variables as the pool takes them. Raises `ConfigError` naming those that its template has no use for."""
    used = {placeholder.name for placeholder in find_placeholders(template.get("job_configuration", {}))}
    properties = template.get("variables", {}).get("properties", {})
    known = used & properties.keys() - OF_THE_SUPERVISOR
    if unknown := sorted(wanted.keys() - known):
        raise ConfigError(
            f"job variable {', '.join(unknown)}: the pool {pool} has none of that name; it has "
            f"{', '.join(sorted(known)) or 'none at all'}. Name the pool that it is meant for: -p pool=…"
        )
    # `-jv gpus=2` is a number on Prefect's command line, whatever the pool wants.
    numbers = {name for name, value in wanted.items() if isinstance(value, int | float)}
    as_text = {name for name in numbers if properties[name].get("type") == "string"}
    return {name: str(value) if name in as_text else value for name, value in wanted.items()}
