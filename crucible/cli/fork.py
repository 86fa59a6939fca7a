"""`crucible jobs fork`: a new job that begins at a checkpoint of another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crucible.cli.records import JobArgument, JsonOption, StoreOption, open_job, open_store, print_json


def fork(
    job: JobArgument,
    command: Annotated[
        list[str] | None, typer.Argument(metavar="-- COMMAND…", help="A script's new command line; default: the job's.")
    ] = None,
    from_: Annotated[str, typer.Option("--from", help="Step of a checkpoint, or best; default: the newest.")] = "",
    set_: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=VALUE: a setting to change; env.NAME=VALUE: a script's variable. Repeatable."),
    ] = None,
    code: Annotated[
        Path | None,
        typer.Option(help="A script's folder, packed anew. Default: the code that the job had.", file_okay=False),
    ] = None,
    name: Annotated[str, typer.Option(help="The new job's name; default: JOB-from-STEP.")] = "",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a new job at a checkpoint of another, with some settings changed; the other job stays as it is."""
    from crucible.local.forking import Changes, fork_job, parse_settings

    parent = open_job(open_store(store), job)
    settings, env = parse_settings(set_ or [])
    changes = Changes(settings=settings, command=command or [], env=env, code=code)
    made, flow_run = fork_job(parent, from_, changes, name, lambda line: typer.echo(line, err=True))
    origin = made.read_spec().forked_from
    assert origin is not None
    if as_json:
        print_json({"job": made.job_id, "flow_run": flow_run, "forked_from": origin.model_dump()})
    else:
        typer.echo(f"{made.job_id} begins at step {origin.step:,} of {job}, in flow run {flow_run}")
