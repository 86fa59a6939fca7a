"""`crucible logs`: what a job's workload printed, over all its attempts and pools, from the store alone."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Annotated

import typer

from crucible.cli.records import JobArgument, StoreOption, open_job, open_store
from crucible.errors import ConfigError
from crucible.formatting import printable

if TYPE_CHECKING:
    from crucible.jobs.job import Job


def register(app: typer.Typer) -> None:
    app.command("logs")(logs)


def logs(
    job: JobArgument,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on with new lines until the job ends.")] = False,
    grep: Annotated[str | None, typer.Option(help="Only lines in which this regular expression is found.")] = None,
    attempt: Annotated[int | None, typer.Option(min=1, help="Only of this attempt; default: all.")] = None,
    since: Annotated[str | None, typer.Option(help="Only since 10m, 2h, 1d or 2026-05-01T12:00.")] = None,
    raw: Annotated[bool, typer.Option("--raw", help="Without the attempt's number before each line.")] = False,
    store: StoreOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object a line.")] = False,
) -> None:
    """Print what a job's workload printed: one stream over all attempts, with the attempt's number before each line.

    Lines of a running attempt appear within seconds. The Prefect server is not needed.
    """
    from datetime import UTC, datetime

    from crucible.jobs.printed import follow_lines
    from crucible.moments import moment_ago

    found = open_job(open_store(store), job)
    wanted = _expression(grep)
    start = None if since is None else moment_ago(since, datetime.now(UTC))
    if attempt is not None and attempt not in (there := [entry.number for entry in found.attempts()]):
        has = f"{len(there)} so far" if there else "none yet"
        raise ConfigError(f"--attempt {attempt}: job {job} has no such attempt; it has {has}")
    for line in follow_lines(found, lambda: not follow or _is_over(found, attempt), attempt, start):
        text = printable(line.text)
        if wanted is not None and not wanted.search(text):
            continue
        if as_json:
            record = {"attempt": line.attempt, "at": line.at.astimezone(UTC).isoformat(), "line": text}
            typer.echo(json.dumps(record, ensure_ascii=False))
        else:
            typer.echo(text if raw else f"{line.attempt} | {text}")


def _is_over(job: Job, attempt: int | None) -> bool:
    """Whether nothing more will be printed: the attempt has ended, or the job, which may have started again since."""
    from crucible.jobs.status import JobState, status_of

    if attempt is not None:
        return job.attempt(attempt).read_outcome() is not None
    status = status_of(job)
    return status is not None and status.state is not JobState.RUNNING


def _expression(text: str | None) -> re.Pattern[str] | None:
    try:
        return re.compile(text) if text is not None else None
    except re.error as error:
        raise ConfigError(f"--grep {text!r} is no regular expression: {error}") from None
