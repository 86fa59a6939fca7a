"""What commands about records share: their options, how they open a store and a job, and how they print."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crucible.formatting import printable

if TYPE_CHECKING:
    from crucible.jobs.job import Job
    from crucible.store import Store

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's name.")]
StoreOption = Annotated[str | None, typer.Option("--store", help="Store address; default: the local store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def open_store(address: str | None) -> Store:
    """The store at `address`, or the default one. Raises `ConfigError` for a named store that is not there."""
    from crucible.store import existing_store

    return existing_store(address)


def store_option(store: Store) -> str:
    """What a printed command needs besides a job's name to find it in this store: nothing in the default one."""
    from crucible.store import store_option

    return store_option(store)


def open_job(store: Store, name: str) -> Job:
    """The job of that name. Raises `ConfigError` naming the nearest ones when there is none."""
    from crucible.errors import ConfigError
    from crucible.jobs.job import Job

    if not store.exists(f"jobs/{Job(store, name).job_id}/job.json"):
        raise ConfigError(
            f"job: there is no job {name!r} in {store.uri}; "
            f"{meant(name, Job.ids(store), f'crucible jobs ls{store_option(store)}')}"
        )
    return Job(store, name)


def meant(name: str, names: list[str], listed_by: str) -> str:
    """What to do about a name that is none of `names`; `listed_by`: the command that lists them."""
    import difflib

    near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or [n for n in names if n.startswith(name)][:3]
    return f"did you mean {' or '.join(near)}?" if near else f"`{listed_by}` lists what there is"


def print_json(value: Any) -> None:
    """Print indented JSON; a number that JSON does not know becomes null."""
    typer.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False))


def print_facts(facts: dict[str, str]) -> None:
    """Print names and values, one a line."""
    width = max(map(len, facts)) + 2
    for name, fact in facts.items():
        typer.echo(f"{name:<{width}}{printable(fact)}")


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
