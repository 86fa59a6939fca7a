"""`crucible run`: start a training script of your own with one command, and follow it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crucible.cli import script_options as options
from crucible.cli.records import print_json, store_option
from crucible.formatting import counted, duration, money

if TYPE_CHECKING:
    from crucible.local.follow import Standing
    from crucible.script_config import ScriptConfig
    from crucible.store import Store

PANEL = "Your own script"
EXIT_FAILED, EXIT_STOPPED, EXIT_DETACHED = 1, 75, 130


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL)(run)


def run(
    command: options.Command = None,
    pool: options.Pool = None,
    name: Annotated[
        str | None, typer.Option(help="The job's name; an existing job is continued. Default: the folder and the time.")
    ] = None,
    max_cost_usd: options.MaxCost = None,
    max_hours: options.MaxHours = None,
    finish_by: options.FinishBy = None,
    project: options.Project = None,
    gpus: options.Gpus = None,
    nodes: options.Nodes = None,
    env: options.Env = None,
    secret: options.Secret = None,
    include: options.Include = None,
    data: options.Data = None,
    resume_flag: options.ResumeFlag = None,
    checkpoint: options.CheckpointPath = None,
    metrics: options.Metrics = None,
    output: options.Output = None,
    tracker: options.Tracker = None,
    store: options.StoreName = None,
    folder: options.Folder = Path(),
    config_file: options.ConfigFile = None,
    follow: Annotated[
        bool, typer.Option("--follow/--detach", help="Follow the job to its end, or return at once.")
    ] = True,
    sample_log: Annotated[
        Path | None,
        typer.Option(help="Try --metrics on this file of lines that the script printed; start nothing.", exists=True),
    ] = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; start nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a training script of your own, in a copy of its folder, on any pool.

    Options take precedence over crucible.yaml, which takes precedence over the defaults below.
    """
    from crucible.local import access
    from crucible.local.run_script import plan_run

    given: dict[str, Any] = {
        "command": command,
        "pool": pool,
        "max_cost_usd": max_cost_usd,
        "max_hours": max_hours,
        "finish_by": finish_by,
        "project": project,
        "resume": resume_flag,
        "checkpoint": checkpoint,
        "metrics": options.metrics_source(metrics),
        "output": output,
        "tracker": tracker,
        "store": store,
    }
    added = options.Added(env, secret, include, data, gpus, nodes)
    config = options.read_config(folder, config_file, given, added, ask=not as_json and not dry_run)
    planned = plan_run(config, folder, name or "")
    options.print_plan(planned, folder)
    if dry_run or sample_log:
        if sample_log:
            _try_metrics(planned.script, sample_log)
        if as_json:
            print_json({"job": planned.job, "code": planned.packed.record.digest, **planned.parameters()})
        return
    with access.connect_here() as api:
        flow_run, opened = options.start(api, planned, config.store)
        if not follow:
            typer.echo(f"detached  follow it: crucible jobs show {planned.job}{store_option(opened)}", err=True)
            if as_json:
                print_json({"job": planned.job, "flow_run": flow_run, "code": planned.packed.record.digest})
            return
        standing = follow_run(flow_run, opened, planned.job)
    conclude(standing, opened, planned.job, flow_run, as_json)


def _try_metrics(script: ScriptConfig, sample: Path) -> None:
    """Print what the metrics and `step_from` find in a file of printed lines; exit with 1 where it is nothing."""
    import re

    from crucible.adapter.metrics import read_printed
    from crucible.errors import ConfigError

    if script.metrics.format in ("contract", "jsonl", "tensorboard"):
        raise ConfigError(f"--sample-log: metrics: {script.metrics.format} reads a file, and no printed lines")
    try:
        lines = sample.read_text(encoding="utf-8", errors="replace").replace("\r", "\n").splitlines()
    except OSError as error:
        raise ConfigError(f"--sample-log {sample} cannot be read: {error.strerror}") from error
    points = list(read_printed(script.metrics, lines, script.total_steps))
    typer.echo(f"{'metrics':<10}{counted(len(points), 'report')} in {counted(len(lines), 'line')}", err=True)
    for step, values in [*points[:3], *points[3:][-2:]]:
        figures = ", ".join(f"{name} {value:.6g}" for name, value in values.items())
        typer.echo(f"{'':10}step {step:,}: {figures}", err=True)
    steps: list[str] = []
    if script.checkpoint and script.checkpoint.step_from:
        pattern = re.compile(script.checkpoint.step_from)
        steps = [match[1] for line in lines if (match := pattern.search(line))]
        found = f", the last at step {steps[-1]}" if steps else ""
        typer.echo(f"{'saves':<10}{counted(len(steps), 'line')} match step_from{found}", err=True)
    if not points:
        where = "metrics.pattern" if script.metrics.pattern else f"metrics: {script.metrics.format}"
        typer.echo(f"{'':10}{where} matches none of them, so the job would have no curve", err=True)
        raise typer.Exit(EXIT_FAILED)


def follow_run(flow_run: str, store: Store, job: str) -> Standing:
    """Show the run until it has ended; Ctrl-C asks whether to detach or to stop."""
    from crucible.cli.following import Screen
    from crucible.local import access
    from crucible.local.follow import follow

    stopping = False
    with access.connect_here(seconds=10) as api, Screen(store, job) as screen:
        while True:
            try:
                for standing in follow(api, flow_run, store, job):
                    screen.show(standing)
                if standing.state == "FAILED":
                    screen.leave_last_lines()
                return standing
            except KeyboardInterrupt:
                if stopping or not screen.ask_stop():
                    typer.echo(
                        f"\ndetached: {job} goes on. Stop it: crucible jobs stop {job}{store_option(store)}", err=True
                    )
                    raise typer.Exit(EXIT_DETACHED) from None
                stopping = True
                screen.say(_stop(store, job))


def _stop(store: Store, job: str) -> str:
    """Ask the job to stop; returns what happens now, or why it cannot be stopped."""
    from crucible.errors import CrucibleError
    from crucible.jobs.job import Job
    from crucible.jobs.records import EndReason, StopRequest
    from crucible.supervision.stop_job import stop_job

    request = StopRequest(end_reason=EndReason.CANCELLED, reason="stopped by a person")
    try:
        return stop_job(Job.open(store, job), request).message
    except CrucibleError as error:
        return f"error: {error}"


def conclude(standing: Standing, store: Store, job: str, flow_run: str, as_json: bool) -> None:
    """Print how it ended, and exit with the code for it."""
    summary, where = standing.summary, store_option(store)
    if as_json:
        figures = {} if summary is None else {"step": summary.step, "cost_usd": summary.cost_usd}
        print_json({"job": job, "flow_run": flow_run, "state": standing.state, "message": standing.message, **figures})
    if summary is not None:
        attempts = counted(len(summary.attempts), "attempt")
        steps = f"step {summary.step:,}, " if summary.step else ""
        line = f"{steps}{attempts}, {duration(summary.seconds)}, {money(summary.cost_usd)}"
        colour = {"COMPLETED": "green", "FAILED": "red"}.get(standing.state)
        ending = typer.style(f"{standing.state.lower():<10}", fg=colour)
        typer.echo(f"{ending}{line}; crucible jobs show {job}{where}", err=True)
    if standing.state == "COMPLETED":
        return
    failed = standing.state != "CANCELLED"
    typer.echo(f"{'':10}{typer.style(standing.message, fg='red') if failed else standing.message}", err=True)
    if summary is not None and summary.attempts and summary.attempts[-1].end_reason is None:
        typer.echo(f"{'':10}attempt {summary.attempts[-1].number} still saves, and ends by itself", err=True)
    if standing.state == "CANCELLED":
        typer.echo(f"{'':10}go on: crucible jobs continue {job}{where}", err=True)
        raise typer.Exit(EXIT_STOPPED)
    if "ModuleNotFoundError: " in standing.message:
        fix = "a package belongs in the folder's requirements.txt; crucible run --dry-run shows which files travel"
        typer.echo(f"{'':10}{fix}", err=True)
    if summary is not None and summary.attempts:
        typer.echo(f"{'':10}everything that it printed: crucible logs {job}{where}", err=True)
    if summary is not None and summary.committed_step and summary.spec.script is not None:
        fork = f"crucible jobs fork {job} --code .{where}"
        typer.echo(f"{'':10}from step {summary.committed_step:,}, with the script mended: {fork}", err=True)
    raise typer.Exit(EXIT_FAILED)
