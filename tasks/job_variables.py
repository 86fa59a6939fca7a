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
from crucible.jobs.records import JobSpec
from crucible.supervision.retry_policy import Placement

OF_THE_SUPERVISOR = frozenset({"command", "working_dir", "name", "stream_output"})
"""Variables that concern the supervising process alone."""
OF_THE_MACHINE = {
    "modal": frozenset({"gpu", "usd_per_hour"}),
    "skypilot": frozenset({"infra", "instance_type", "accelerators", "use_spot"}),
}
"""What the pool is told of the machine that the plan has chosen (`tasks.launching`)."""


def given_to_this_run() -> dict[str, Any]:
    """What this supervising run was started with for the attempts."""
    given = flow_run.job_variables or {}
    return {name: value for name, value in given.items() if name not in OF_THE_SUPERVISOR}


def variables_of(job: Job, spec: JobSpec) -> dict[str, Any]:
    """What this run was given; where that is nothing, what the job has on record.

    What is given is meant for the training. Of its stages only one on the same pool has it, on record.
    """
    return (given_to_this_run() if spec.stage == "train" else {}) or job.read_variables()


def remember_variables(job: Job) -> None:
    """Put what this run was given on record, for a run that continues the job."""
    if given := given_to_this_run():
        job.set_variables(given)


def require_known(wanted: Mapping[str, Any], places: Iterable[Placement]) -> None:
    """Refuse, before anything is launched, variables that a pool does not have, or that would be overruled there.

    Raises `ConfigError`.
    """
    for place in places if wanted else ():
        if place.instance and (named := sorted(wanted.keys() & OF_THE_MACHINE.get(place.pool, frozenset()))):
            raise ConfigError(
                f"job variable {', '.join(named)}: the machine on {place.pool} is chosen together with its price; name "
                f'it as `crucible prices ls` does: -p \'resources={{"instance": "{place.instance}"}}\''
            )
        with suppress(ObjectNotFound):  # reported when an attempt is launched there
            _for_pool(wanted, place.pool)


def given_for(job: Job, spec: JobSpec, pool: str) -> dict[str, Any]:
    """The variables for an attempt on a pool.

    Raises:
        ConfigError: the pool has no variable of a name.
        ObjectNotFound: there is no such pool.
    """
    wanted = variables_of(job, spec)
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
