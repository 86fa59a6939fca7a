"""`crucible jobs`: list, show, stop, limit and continue jobs, and read what they reported."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crucible.cli import fork
from crucible.cli.job_tables import (
    attempt_row,
    figure_text,
    json_line,
    limits_label,
    loss_text,
    read_deadline,
    saved_label,
    summary_or_damage,
    unless_damaged,
)
from crucible.cli.logs import logs
from crucible.cli.records import (
    JobArgument,
    JsonOption,
    StoreOption,
    open_job,
    open_store,
    print_facts,
    print_json,
    store_option,
)
from crucible.formatting import UNKNOWN, duration, money, print_table

PARALLEL_READS = 8
NOT_IN_TABLE = ("time", "max_iters", "checkpoint_")
"""Beginnings of the metrics that only `--json` prints."""


def register(app: typer.Typer) -> None:
    """Add the `jobs` commands."""
    group = typer.Typer(help="Jobs: list, show, stop, continue and fork them.", no_args_is_help=True)
    group.command("ls")(list_)
    group.command()(show)
    group.command()(metrics)
    group.command(hidden=True)(logs)  # as `crucible logs`
    group.command()(report)
    group.command()(stop)
    group.command()(limits)
    group.command("continue")(continue_)
    group.command()(fork.fork)
    app.add_typer(group, name="jobs")


def list_(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the jobs of the store, newest first."""
    from concurrent.futures import ThreadPoolExecutor

    from crucible.jobs.job import Job

    opened = open_store(store)
    with ThreadPoolExecutor(PARALLEL_READS) as pool:
        found = list(pool.map(summary_or_damage, (Job(opened, name) for name in Job.ids(opened))))
    summaries = sorted((s for s, _ in found if s), key=lambda s: s.spec.created_at, reverse=True)
    damaged = [damage for _, damage in found if damage]
    if as_json:
        print_json([*map(json_line, summaries), *damaged])
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
                loss_text(s.val_loss),
                str(len(s.attempts)),
                s.attempts[-1].pool if s.attempts else UNKNOWN,
                money(s.cost_usd),
                f"{s.spec.created_at:%Y-%m-%d %H:%M}",
            ]
            for s in summaries
        ]
        print_table(headings, rows, numbers=(2, 3, 4, 6))


def show(job: JobArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Show one job: its state, attempts, cost and limits."""
    from crucible.checkpoints.commits import Checkpoints
    from crucible.reports import Metrics, summarise

    found = open_job(open_store(store), job)
    damage: list[str] = []
    summary = summarise(found, unless_damaged(Metrics(found).rows, damage) or [])
    damage += summary.warnings
    deadline = unless_damaged(lambda: read_deadline(found), damage)
    saved = unless_damaged(Checkpoints(found).list, damage)
    limits = unless_damaged(found.read_limits, damage)
    damage = list(dict.fromkeys(damage))
    if as_json:
        finish_by = deadline.isoformat() if deadline else None
        print_json({**summary.as_json(), "finish_by": finish_by, "warnings": damage})
        return
    facts = {
        "job": summary.job_id,
        **({"forked": f"from {parent.job} at step {parent.step:,}"} if (parent := summary.spec.forked_from) else {}),
        "state": f"{summary.state or 'not started'}{f': {summary.reason}' if summary.reason else ''}",
        "step": f"{summary.step:,}" + (f" of {summary.total_steps:,}" if summary.total_steps else ""),
        "saved": saved_label(saved),
        "loss": f"validation {loss_text(summary.val_loss)}, training {loss_text(summary.train_loss)}",
        "time": duration(summary.seconds)
        + (f", about {duration(summary.seconds_left)} left" if summary.seconds_left is not None else ""),
        "cost": money(summary.cost_usd),
        "limits": limits_label(limits) if limits else UNKNOWN,
        **({"finish by": f"{deadline:%Y-%m-%d %H:%M} UTC"} if deadline else {}),
        "dataset": summary.spec.dataset or UNKNOWN,
        "records": found.store.uri,
    }
    print_facts(facts)
    if summary.attempts:
        typer.echo()
        headings = ["attempt", "pool", "instance", "steps", "lost", "recovered in", "cost", "end"]
        print_table(headings, [attempt_row(a) for a in summary.attempts], numbers=(0, 4, 5, 6))
    for sentence in damage:
        typer.echo(f"note: {sentence}", err=True)


def metrics(
    job: JobArgument,
    last: Annotated[
        int | None, typer.Option(min=1, help="Only so many of the newest rows; default: 20, with --json all.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a job's metrics, step by step, over all its attempts."""
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
    table = [[figure_text(row.get(name)) for name in names] for row in shown]
    print_table([name.replace("_", " ") for name in names], table, numbers=range(len(names)))


def report(
    job: JobArgument,
    out: Annotated[
        Path | None, typer.Option(dir_okay=False, help="Write the page, pictures included, to this file.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Print a job's report as Markdown, without its pictures; --out writes it to a file with them."""
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
    reason: Annotated[str, typer.Option(help="The reason to put on record.")] = "stopped by a person",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Save and stop a job, whatever it is doing. It can be continued later."""
    from crucible.jobs.records import EndReason, StopRequest
    from crucible.supervision.stop_job import stop_job

    found = open_job(open_store(store), job)
    done = stop_job(found, StopRequest(end_reason=EndReason.CANCELLED, reason=reason))
    if as_json:
        print_json({"job": job, "attempt": done.attempt, "done": done.message, "reason": reason})
    else:
        typer.echo(f"{job}: {done.message}; `crucible jobs show {job}{store_option(found.root)}` says when it has")


def limits(
    job: JobArgument,
    max_cost_usd: Annotated[str | None, typer.Option(help="Cap in US dollars over all attempts, or none.")] = None,
    max_hours: Annotated[str | None, typer.Option(help="Cap in hours since the job was created, or none.")] = None,
    max_attempts: Annotated[str | None, typer.Option(help="Cap on attempts in all; 50 in a new job.")] = None,
    max_attempts_without_progress: Annotated[
        str | None, typer.Option(help="Cap on attempts in a row that save nothing new; 2 in a new job.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show a job's limits, or change those that you give; a running attempt applies a change within seconds."""
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
        typer.echo(f"{job}: {limits_label(found.read_limits())}")


def continue_(
    job: JobArgument,
    max_cost_usd: Annotated[str | None, typer.Option(help="New cap in US dollars over all attempts, or none.")] = None,
    max_hours: Annotated[str | None, typer.Option(help="Cap in hours since the job was created, or none.")] = None,
    max_attempts: Annotated[str | None, typer.Option(help="Cap on attempts in all; 50 in a new job.")] = None,
    finish_by: Annotated[
        str | None, typer.Option(help="New deadline, such as 2026-05-07T18:00+02:00, or none.")
    ] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a job that stopped at its limits, was cancelled or failed, from its newest checkpoint.

    Limits that you give replace those it had.
    """
    from crucible.local.continuing import continue_job

    found = open_job(open_store(store), job)
    given = {"max_cost_usd": max_cost_usd, "max_hours": max_hours, "max_attempts": max_attempts}
    flow_run = continue_job(found, given, finish_by)
    if as_json:
        print_json({"job": job, "flow_run": flow_run})
    else:
        typer.echo(f"{job} goes on in flow run {flow_run}")
