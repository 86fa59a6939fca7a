"""`crucible jobs`: list, show, stop, limit and continue jobs, and read what they reported."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from crucible.formatting import UNKNOWN, duration, money, print_table, printable

if TYPE_CHECKING:
    from crucible.checkpoints.manifest import Checkpoint
    from crucible.jobs.job import Job
    from crucible.jobs.records import Limits
    from crucible.reports import AttemptSummary, JobSummary
    from crucible.store import Store

T = TypeVar("T")

PARALLEL_READS = 8
FOLLOW_SECONDS = 2.0
NOT_IN_TABLE = ("time", "max_iters", "checkpoint_")
"""Beginnings of the metrics that only `--json` prints."""

JobArgument = Annotated[str, typer.Argument(metavar="JOB", help="The job's name.")]
StoreOption = Annotated[str | None, typer.Option("--store", help="Store address; default: the local store.")]
JsonOption = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(app: typer.Typer) -> None:
    """Add the `jobs` commands."""
    group = typer.Typer(help="Jobs: where they stand, what they cost, how to stop them.", no_args_is_help=True)
    group.command("ls")(list_)
    group.command()(show)
    group.command()(metrics)
    group.command()(logs)
    group.command()(report)
    group.command()(stop)
    group.command()(limits)
    group.command("continue")(continue_)
    app.add_typer(group, name="jobs")


def list_(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the jobs of the store, newest first."""
    from concurrent.futures import ThreadPoolExecutor

    from crucible.jobs.job import Job

    opened = open_store(store)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        found = list(pool.map(_summary, (Job(opened, name) for name in Job.ids(opened))))
    summaries = sorted((s for s, _ in found if s), key=lambda s: s.spec.created_at, reverse=True)
    damaged = [damage for _, damage in found if damage]
    if as_json:
        print_json([*map(_line, summaries), *damaged])
        return
    for damage in damaged:
        typer.echo(f"warning: job {damage['job']} is left out: {damage['reason']}", err=True)
    if not summaries and not damaged:
        typer.echo(f"no jobs in {opened.uri} yet; `prefect deployment run train-nanogpt` starts one")
    elif summaries:
        headings = ["job", "state", "step", "val loss", "attempts", "pool", "cost", "created"]
        rows = [
            [
                s.job_id,
                s.state or "not started",
                f"{s.step:,} of {s.total_steps:,}" if s.total_steps else f"{s.step:,}",
                _loss(s.val_loss),
                str(len(s.attempts)),
                s.attempts[-1].pool if s.attempts else UNKNOWN,
                money(s.cost_usd),
                f"{s.spec.created_at:%Y-%m-%d %H:%M}",
            ]
            for s in summaries
        ]
        print_table(headings, rows, numbers=(2, 3, 4, 6))


def show(job: JobArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show one job: where it stands, its attempts and its limits."""
    from crucible.checkpoints.commits import Checkpoints
    from crucible.reports import Metrics, summarise

    found = open_job(open_store(store), job)
    damage: list[str] = []
    summary = summarise(found, _unless_damaged(Metrics(found).rows, damage) or [])
    damage += summary.warnings
    deadline = _unless_damaged(lambda: _deadline(found), damage)
    saved = _unless_damaged(Checkpoints(found).list, damage)
    limits = _unless_damaged(found.read_limits, damage)
    damage = list(dict.fromkeys(damage))
    if as_json:
        finish_by = deadline.isoformat() if deadline else None
        print_json({**summary.as_json(), "finish_by": finish_by, "warnings": damage})
        return
    facts = {
        "job": summary.job_id,
        "state": f"{summary.state or 'not started'}{f': {summary.reason}' if summary.reason else ''}",
        "step": f"{summary.step:,}" + (f" of {summary.total_steps:,}" if summary.total_steps else ""),
        "saved": _saved_in_words(saved),
        "loss": f"validation {_loss(summary.val_loss)}, training {_loss(summary.train_loss)}",
        "time": duration(summary.seconds)
        + (f", about {duration(summary.seconds_left)} left" if summary.seconds_left is not None else ""),
        "cost": money(summary.cost_usd),
        "limits": _limits_in_words(limits) if limits else UNKNOWN,
        **({"finish by": f"{deadline:%Y-%m-%d %H:%M} UTC"} if deadline else {}),
        "dataset": summary.spec.dataset or UNKNOWN,
        "records": found.store.uri,
    }
    print_facts(facts)
    if summary.attempts:
        typer.echo()
        headings = ["attempt", "pool", "instance", "steps", "lost", "recovered in", "cost", "end"]
        print_table(headings, [_attempt_row(a) for a in summary.attempts], numbers=(0, 4, 5, 6))
    for sentence in damage:
        typer.echo(f"note: {sentence}", err=True)


def metrics(
    job: JobArgument,
    last: Annotated[
        int | None, typer.Option(min=1, help="Only the last so many rows; default: 20, --json: all.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print what a job reported, step by step, over all its attempts."""
    from crucible.reports import Metrics

    found = open_job(open_store(store), job)
    rows = Metrics(found).rows()
    if as_json:
        print_json(rows[-last:] if last else rows)
        return
    if not rows:
        typer.echo(f"job {job} has reported nothing yet")
        return
    shown = rows[-(last or 20) :]
    names = list(dict.fromkeys(name for row in shown for name in row if not name.startswith(NOT_IN_TABLE)))
    first = ["step", "attempt"]
    names = first + [name for name in names if name not in first]
    table = [[_figure(row.get(name)) for name in names] for row in shown]
    print_table([name.replace("_", " ") for name in names], table, numbers=range(len(names)))


def logs(
    job: JobArgument,
    attempt: Annotated[int | None, typer.Option(min=1, help="Of this attempt; default: the newest.")] = None,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the attempt ends.")] = False,
    store: StoreOption = None,
) -> None:
    """Print everything that a job's workload printed."""
    import time

    found = open_job(open_store(store), job)
    attempts = found.attempts()
    if not attempts:
        typer.echo(f"job {job} has no attempt yet", err=True)
        return
    source, read = found.attempt(attempt) if attempt else attempts[-1], -1
    while True:
        ended = source.read_outcome() is not None  # looked at first: what comes after it is all there is
        for number, part in source.read_output(after=read):
            typer.echo(part, nl=False)
            read = number
        if ended or not follow:
            return
        time.sleep(FOLLOW_SECONDS)


def report(
    job: JobArgument,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the page, picture included, to this file.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a job's report as markdown, without its picture; with --out, write it with the picture."""
    import re

    from crucible.errors import ConfigError
    from crucible.reports import job_report

    page = job_report(open_job(open_store(store), job))
    if out is not None:
        try:
            out.write_text(page, encoding="utf-8")
        except OSError as error:
            raise ConfigError(f"--out {out} cannot be written: {error.strerror or error}") from error
    if as_json:
        print_json({"job": job, "markdown": page, "file": str(out) if out else None})
    elif out is not None:
        typer.echo(f"wrote {out}")
    else:
        typer.echo(re.sub(r"!\[[^\]]*\]\(data:[^)]*\)\n\n", "", page), nl=False)


def stop(
    job: JobArgument,
    reason: Annotated[str, typer.Option(help="What the records shall say about it.")] = "stopped by a person",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Stop a job whatever it is doing, saved where there is something to save; it can be continued later."""
    from crucible.jobs.records import EndReason, StopRequest
    from crucible.supervision.stop_job import stop_job

    found = open_job(open_store(store), job)
    done = stop_job(found, StopRequest(end_reason=EndReason.CANCELLED, reason=reason))
    if as_json:
        print_json({"job": job, "attempt": done.attempt, "done": done.message, "reason": reason})
    else:
        typer.echo(f"{job}: {done.message}; `crucible jobs show {job}` says when it has")


def limits(
    job: JobArgument,
    max_cost_usd: Annotated[str | None, typer.Option(help="Dollars over all attempts, or none.")] = None,
    max_hours: Annotated[str | None, typer.Option(help="Hours since the job was made, or none.")] = None,
    max_attempts: Annotated[str | None, typer.Option(help="Attempts in all.")] = None,
    max_attempts_without_progress: Annotated[
        str | None, typer.Option(help="Attempts in a row that may save nothing new.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show or change what may be spent on a job; a running attempt applies a change within seconds."""
    from crucible.jobs.limits import change_limits

    found = open_job(open_store(store), job)
    given = {
        "max_cost_usd": max_cost_usd,
        "max_hours": max_hours,
        "max_attempts": max_attempts,
        "max_attempts_without_progress": max_attempts_without_progress,
    }
    change_limits(found, given)
    if as_json:
        print_json(found.read_limits().model_dump(mode="json", exclude={"schema_version"}))
    else:
        typer.echo(f"{job}: {_limits_in_words(found.read_limits())}")


def continue_(
    job: JobArgument,
    max_cost_usd: Annotated[str | None, typer.Option(help="The new cap in dollars over all attempts, or none.")] = None,
    max_hours: Annotated[str | None, typer.Option(help="Hours since the job was made, or none.")] = None,
    max_attempts: Annotated[str | None, typer.Option(help="Attempts in all.")] = None,
    finish_by: Annotated[str | None, typer.Option(help="A new deadline with its zone, or none.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Start a job again that stopped at its limits, was cancelled or failed; raise its limits first where given.

    What it had saved is where it goes on.
    """
    from crucible.local.continuing import continue_job

    found = open_job(open_store(store), job)
    given = {"max_cost_usd": max_cost_usd, "max_hours": max_hours, "max_attempts": max_attempts}
    flow_run = continue_job(found, given, finish_by)
    if as_json:
        print_json({"job": job, "flow_run": flow_run})
    else:
        typer.echo(f"{job} goes on in flow run {flow_run}")


def open_store(address: str | None) -> Store:
    """The store at `address`, or the default one. Raises `ConfigError` for a named store that is not there."""
    from crucible.store import existing_store

    return existing_store(address)


def open_job(store: Store, name: str) -> Job:
    """The job of that name. Raises `ConfigError` naming the nearest ones when there is none."""
    import difflib

    from crucible.errors import ConfigError
    from crucible.jobs.job import Job

    if not store.exists(f"jobs/{Job(store, name).job_id}/job.json"):
        names = Job.ids(store)
        near = difflib.get_close_matches(name, names, n=3, cutoff=0.5) or [n for n in names if n.startswith(name)][:3]
        fix = f"did you mean {' or '.join(near)}?" if near else "`crucible jobs ls` lists what there is"
        raise ConfigError(f"job: there is no job {name!r} in {store.uri}; {fix}")
    return Job(store, name)


def print_json(value: Any) -> None:
    """Print indented JSON; a number that JSON does not know becomes null."""
    typer.echo(json.dumps(_finite(value), indent=2, ensure_ascii=False))


def print_facts(facts: dict[str, str]) -> None:
    """Print names and values, one a line."""
    width = max(map(len, facts)) + 2
    for name, fact in facts.items():
        typer.echo(f"{name:<{width}}{printable(fact)}")


def _summary(job: Job) -> tuple[JobSummary | None, dict[str, Any] | None]:
    """The job's summary, or why there is none: one damaged job must not hide the others."""
    from crucible.errors import StoreError, StoreUnavailable
    from crucible.reports import summarise

    try:
        return summarise(job), None
    except StoreUnavailable:
        raise
    except StoreError as error:
        return None, {"job": job.job_id, "state": "damaged", "reason": str(error)}


def _line(summary: JobSummary) -> dict[str, Any]:
    """What `ls --json` says of a job."""
    return {
        "job": summary.job_id,
        "state": summary.state,
        "reason": summary.reason,
        "step": summary.step,
        "total_steps": summary.total_steps,
        "committed_step": summary.committed_step,
        "val_loss": summary.val_loss,
        "train_loss": summary.train_loss,
        "attempts": len(summary.attempts),
        "pool": summary.attempts[-1].pool if summary.attempts else None,
        "cost_usd": summary.cost_usd,
        "seconds": summary.seconds,
        "created_at": summary.spec.created_at.isoformat(),
    }


def _attempt_row(attempt: AttemptSummary) -> list[str]:

    steps = UNKNOWN
    if attempt.from_step is not None and attempt.to_step is not None:
        steps = f"{attempt.from_step:,} → {attempt.to_step:,}"
    return [
        str(attempt.number),
        attempt.pool or UNKNOWN,
        attempt.instance or UNKNOWN,
        steps,
        str(attempt.steps_lost) if attempt.end_reason else UNKNOWN,
        duration(attempt.recovery_seconds) if attempt.recovery_seconds is not None else UNKNOWN,
        money(attempt.cost_usd),
        attempt.end + (f": {attempt.message}" if attempt.message and attempt.message != attempt.end else ""),
    ]


def _unless_damaged(read: Callable[[], T], damage: list[str]) -> T | None:
    """What `read` returns; None for a damaged record, which is added to `damage`."""
    from crucible.errors import RecordDamaged

    try:
        return read()
    except RecordDamaged as error:
        damage.append(str(error))
        return None


def _saved_in_words(saved: list[Checkpoint] | None) -> str:
    if saved is None:
        return UNKNOWN
    return f"step {saved[0].step:,}, {len(saved)} checkpoint(s)" if saved else "nothing yet"


def _limits_in_words(limits: Limits) -> str:
    return ", ".join(
        [
            money(limits.max_cost_usd) if limits.max_cost_usd is not None else "any cost",
            f"{limits.max_hours:g} hours" if limits.max_hours is not None else "any time",
            f"{limits.max_attempts} attempts",
            f"{limits.max_attempts_without_progress} in a row without progress",
        ]
    )


def _deadline(job: Job) -> datetime | None:
    """The `finish_by`, in UTC, of the flow run that decides for the job now or did last."""
    from crucible.placement.choice import read_choice

    supervisor = job.read_newest_supervisor()
    choice = read_choice(job, supervisor.flow_run_id) if supervisor and supervisor.flow_run_id else None
    return choice.finish_by.astimezone(UTC) if choice and choice.finish_by else None


def _loss(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.4f}"


def _figure(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:,}" if isinstance(value, int) else f"{value:,.5g}"


def _finite(value: Any) -> Any:
    """NaN and infinity are no JSON."""
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {name: _finite(entry) for name, entry in value.items()}
    return [_finite(entry) for entry in value] if isinstance(value, list | tuple) else value
