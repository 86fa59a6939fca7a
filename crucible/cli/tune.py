"""`crucible tune`: search for the best arguments of a training script of your own, and follow the search."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crucible.cli import script_options as options
from crucible.cli.records import print_json, store_option
from crucible.cli.run import EXIT_DETACHED, EXIT_FAILED, EXIT_STOPPED, PANEL

if TYPE_CHECKING:
    from crucible.local.follow_sweep import SweepStanding
    from crucible.local.tune_script import SweepOfScript
    from crucible.store import Store

SamplerOption = Annotated[str | None, typer.Option(help="grid, random (default) or tpe.")]
ScheduleOption = Annotated[str | None, typer.Option(help="asha (default), halving, hyperband or none.")]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL)(tune)


def tune(
    command: options.Command = None,
    space: Annotated[
        str | None, typer.Option(help="What to search, as YAML or a file of it: 'lr: {loguniform: [1e-4, 1e-2]}'.")
    ] = None,
    metric: Annotated[str | None, typer.Option(help="The metric that decides; default: val_loss.")] = None,
    goal: Annotated[str | None, typer.Option(help="min (default) or max.")] = None,
    sampler: SamplerOption = None,
    schedule: ScheduleOption = None,
    max_trials: Annotated[int | None, typer.Option(help="Trials in all; default: the whole grid, else 30.")] = None,
    parallelism: Annotated[int | None, typer.Option(help="Trials at a time.")] = None,
    min_steps: Annotated[int | None, typer.Option(help="Steps of the first rung; default: a ninth of all.")] = None,
    total_steps: Annotated[int | None, typer.Option(help="Steps of a whole training; needed for rungs.")] = None,
    seed: Annotated[int | None, typer.Option(help="Decides which trials are drawn.")] = None,
    pool: options.Pool = None,
    name: Annotated[
        str | None,
        typer.Option(help="The sweep's name; an existing one is continued. Default: the folder and the time."),
    ] = None,
    max_cost_usd: options.MaxCost = None,
    max_hours: options.MaxHours = None,
    finish_by: options.FinishBy = None,
    project: options.Project = None,
    gpus: options.Gpus = None,
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
        bool, typer.Option("--follow/--detach", help="Follow the sweep to its end, or return at once.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Check everything and print the plan; start nothing.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Search for the best arguments of a training script: each {name} of the space in its command gets a value."""
    from crucible.local import access
    from crucible.local.tune_script import plan_sweep

    search = {
        "metric": metric,
        "goal": goal,
        "sampler": sampler,
        "schedule": schedule,
        "max_trials": max_trials,
        "parallelism": parallelism,
        "min_steps": min_steps,
        "seed": seed,
    }
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
        "total_steps": total_steps,
        "output": output,
        "tracker": tracker,
        "store": store,
        "tune": {**{key: value for key, value in search.items() if value is not None}, **_space(space)},
    }
    added = options.Added(env, secret, include, data, gpus)
    config = options.read_config(folder, config_file, given, added, ask=not as_json and not dry_run)
    planned = plan_sweep(config, folder, name or "")
    options.print_plan(planned, folder, _plan(planned))
    if dry_run:
        if as_json:
            print_json({"sweep": planned.job, "code": planned.packed.record.digest, **planned.parameters()})
        return
    with access.connect_here() as api:
        flow_run, opened = options.start(api, planned, config.store)
        if not follow:
            typer.echo(f"detached  follow it: crucible sweeps show {planned.job}{store_option(opened)}", err=True)
            if as_json:
                print_json({"sweep": planned.job, "flow_run": flow_run, "code": planned.packed.record.digest})
            return
        standing = _follow(api, flow_run, opened, planned.job)
    _conclude(standing, opened, planned.job, flow_run, as_json)


def _space(text: str | None) -> dict[str, Any]:
    """What `--space` gives: YAML, or the path of a file with it."""
    from crucible.errors import ConfigError
    from crucible.run_config import read_file

    if text is None:
        return {}
    try:
        is_file = Path(text).is_file()
    except OSError:  # too long for a name
        is_file = False
    if is_file:
        return {"space": read_file(Path(text))}
    if ":" not in text:
        raise ConfigError(f"--space: there is no file {text[:200]}; give one, or 'lr: {{loguniform: [1e-4, 1e-2]}}'")
    return {"space": text}


def _plan(planned: SweepOfScript) -> dict[str, str]:
    import json

    from crucible.sweeps.records import TO_THE_END

    search = planned.search
    rungs = ", ".join(f"{step:,}" for step in planned.ladder)
    return {
        "space": ", ".join(f"{name}: {json.dumps(entry)}" for name, entry in planned.space.as_json().items()),
        "search": f"{search.sampler}, {search.goal} {search.label}; "
        + (
            f"{search.schedule}, rungs at step {rungs}"
            if planned.ladder != TO_THE_END
            else "every trial to its end (set total_steps to stop bad ones early)"
        ),
    }


def _follow(api: Any, flow_run: str, store: Store, sweep: str) -> SweepStanding:
    """Print a line whenever trials have ended, until the sweep has; Ctrl-C detaches."""
    from crucible.cli.following import ServerNotices
    from crucible.local.follow_sweep import follow_sweep

    shown, server = "", ServerNotices(sweep, f"crucible sweeps show {sweep}")
    try:
        for standing in follow_sweep(api, flow_run, store, sweep):
            if notice := server.new(standing.unanswered):
                typer.echo(notice, err=True)
            if standing.progress != shown:
                shown = standing.progress
                typer.echo(f"{'':10}{shown}", err=True)
    except KeyboardInterrupt:
        typer.echo(f"\ndetached: {sweep} goes on. Stop it: crucible sweeps stop {sweep}{store_option(store)}", err=True)
        raise typer.Exit(EXIT_DETACHED) from None
    return standing


def _conclude(standing: SweepStanding, store: Store, sweep: str, flow_run: str, as_json: bool) -> None:
    """Print how it ended, and exit with the code for it."""
    from crucible.cli.sweeps import line_of, print_sweep
    from crucible.sweeps import Sweep

    found = Sweep(store, sweep)
    known = found.exists()
    if as_json:
        figures = line_of(found) if known else {"sweep": sweep}
        print_json({**figures, "flow_run": flow_run, "state": standing.state, "message": standing.message})
    elif known:
        print_sweep(found, found.leaderboard())
    typer.echo(f"{standing.state.lower():<10}{standing.message}", err=True)
    if standing.state == "COMPLETED":
        return
    if standing.state == "CANCELLED":
        typer.echo(f"{'':10}go on: crucible sweeps continue {sweep}{store_option(store)}", err=True)
        raise typer.Exit(EXIT_STOPPED)
    raise typer.Exit(EXIT_FAILED)
