"""`crucible compare`, `crucible report` and `crucible share`: what comes after training."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crucible.cli.records import JobArgument, JsonOption, StoreOption, open_job, open_store, print_json
from crucible.formatting import print_table, size

HtmlOption = Annotated[Path | None, typer.Option("--out", help="Write the page to this .html or .md file.")]


def register(app: typer.Typer) -> None:
    app.command()(compare)
    app.command()(report)
    app.command()(share)


def compare(
    jobs: Annotated[list[str], typer.Argument(metavar="JOB JOB…", help="The jobs' names.")],
    out: HtmlOption = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Compare jobs: results, cost, and the settings that differ; with --out, their curves in one picture."""
    from crucible.errors import ConfigError
    from crucible.formatting import UNKNOWN
    from crucible.reports.compare import MOST_JOBS, comparison_page, result_rows
    from crucible.reports.compare import compare as read

    names = list(dict.fromkeys(jobs))
    if not 2 <= len(names) <= MOST_JOBS:
        raise ConfigError(f"JOB: name two to {MOST_JOBS} jobs, not {len(names)}")
    opened = open_store(store)
    comparison = read([open_job(opened, name) for name in names])
    if out is not None:
        _write(out, comparison_page(comparison), " · ".join(names))
    if as_json:
        print_json(comparison.as_json())
        return
    headings = ["job", "state", "step", "val loss", "best", "perplexity", "time", "attempts", "cost"]
    print_table(headings, result_rows(comparison), numbers=range(2, len(headings)))
    differing = comparison.differing()
    typer.echo()
    if not differing:
        typer.echo("the jobs have the same configuration")
        return
    rows = [[name, *(UNKNOWN if value is None else str(value) for value in row)] for name, row in differing.items()]
    print_table(["setting", *names], rows)


def report(
    job: JobArgument,
    out: Annotated[Path, typer.Option(help="The file to write, .html or .md.", dir_okay=False)],
    store: StoreOption = None,
) -> None:
    """Write a job's report as one file that needs nothing else, pictures included."""
    from crucible.reports import job_report

    _write(out, job_report(open_job(open_store(store), job)), job)


def share(
    job: JobArgument,
    step: Annotated[
        int | None, typer.Option(help="The checkpoint of this step; default: the evaluated model, else the newest.")
    ] = None,
    expires: Annotated[str, typer.Option(help="How long a link works: 12h, 7d.")] = "7d",
    out: Annotated[Path, typer.Option(help="The folder for the file, of a store without links.")] = Path(),
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Pack a model or a checkpoint into one file for others: behind a link that expires on S3, else on this disk."""
    from crucible.checkpoints.commits import Checkpoints
    from crucible.checkpoints.restore import choose_checkpoint
    from crucible.checkpoints.sharing import share_checkpoint, share_model
    from crucible.contract import step_name
    from crucible.moments import time_span
    from crucible.reports.evaluation import read_evaluation

    found, span = open_job(open_store(store), job), time_span(expires, "expires")
    evaluation = read_evaluation(found)
    if step is None and evaluation is not None:
        shared = share_model(found, step_name(evaluation["step"]), span, out)
    else:
        which = "" if step is None else str(step)
        shared = share_checkpoint(found, choose_checkpoint(Checkpoints(found), which, f"--step {which}"), span, out)
    if as_json:
        until = shared.expires_at.isoformat() if shared.expires_at else None
        print_json({"name": shared.name, "where": shared.where, "bytes": shared.bytes, "expires_at": until})
        return
    typer.echo(shared.where)
    until = f"; the link works until {shared.expires_at:%Y-%m-%d %H:%M} UTC" if shared.expires_at else ""
    typer.echo(f"{shared.name}, {size(shared.bytes)}{until}", err=True)


def _write(path: Path, page: str, title: str) -> None:
    from crucible.errors import ConfigError
    from crucible.reports.html import html_page

    if path.suffix not in (".html", ".md"):
        raise ConfigError(f"--out {path}: name a file that ends with .html or .md")
    try:
        path.write_text(html_page(page, title) if path.suffix == ".html" else page, encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"--out {path} cannot be written: {error.strerror or error}") from error
    typer.echo(f"wrote {path}", err=True)
