"""`crucible sweeps`: list, show, limit, stop and continue sweeps."""

from __future__ import annotations

from contextlib import suppress
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crucible.cli.records import JsonOption, StoreOption, meant, open_store, print_facts, print_json, store_option
from crucible.formatting import UNKNOWN, duration, money, print_table

if TYPE_CHECKING:
    from crucible.jobs.job import Job
    from crucible.jobs.records import StopRequest
    from crucible.store import Store
    from crucible.sweeps import Sweep, SweepLimits

DEPLOYMENT, SCRIPT_DEPLOYMENT = "tune-nanogpt", "tune-script"

SweepArgument = Annotated[str, typer.Argument(metavar="SWEEP", help="The sweep's name.")]


def register(app: typer.Typer) -> None:
    """Add the `sweeps` commands."""
    group = typer.Typer(help="Sweeps: leaderboards, costs, limits; stop and continue.", no_args_is_help=True)
    group.command("ls")(list_)
    group.command()(show)
    group.command()(stop)
    group.command()(limits)
    group.command("continue")(continue_)
    app.add_typer(group, name="sweeps")


def list_(store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List the sweeps of the store, newest first."""
    from crucible.errors import ConfigError, ObjectMissing, RecordDamaged
    from crucible.sweeps import Sweep

    opened = open_store(store)
    lines, damaged = [], []
    for name in Sweep.ids(opened):
        try:
            lines.append(line_of(Sweep(opened, name)))
        except (RecordDamaged, ObjectMissing, ConfigError) as error:
            damaged.append({"sweep": name, "state": "damaged", "reason": str(error)})
    lines.sort(key=lambda line: line["created_at"], reverse=True)
    if as_json:
        print_json([*lines, *damaged])
        return
    for damage in damaged:
        typer.echo(f"warning: sweep {damage['sweep']} is left out: {damage['reason']}", err=True)
    if not lines and not damaged:
        typer.echo(f"no sweeps in {opened.uri} yet; `prefect deployment run {DEPLOYMENT}` starts one")
    elif lines:
        headings = ["sweep", "state", "trials", "best", "of", "steps", "cost", "created"]
        rows = [
            [
                line["sweep"],
                line["state"] or "not started",
                f"{line['trials']} of {line['max_trials']}",
                UNKNOWN if line[line["metric"]] is None else f"{line[line['metric']]:.4f}",
                line["metric"],
                f"{line['steps']:,}",
                money(line["cost_usd"]),
                line["created_at"][:16].replace("T", " "),
            ]
            for line in lines
        ]
        print_table(headings, rows, numbers=(2, 3, 5, 6))


def show(
    sweep: SweepArgument,
    store: StoreOption = None,
    as_json: JsonOption = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print the leaderboard as CSV.")] = False,
    page: Annotated[bool, typer.Option("--best", help="Print the best configuration as YAML, ready to copy.")] = False,
) -> None:
    """Show one sweep: where it stands, and its leaderboard, best trial first."""
    from crucible.errors import ConfigError
    from crucible.sweeps.kinds import as_yaml
    from crucible.sweeps.leaderboard import as_csv as csv_of
    from crucible.sweeps.leaderboard import digest

    found = open_sweep(open_store(store), sweep)
    table = found.leaderboard()
    if page:
        best = found.best()
        if best is None:
            raise ConfigError(
                f"sweep {sweep} has measured no trial yet; `crucible sweeps show {sweep}{store_option(found.root)}` "
                f"shows where it stands"
            )
        typer.echo(as_yaml(found.read_kind().describe(best.values)), nl=False)
    elif as_csv:
        typer.echo(csv_of(table, found.read_columns()), nl=False)
    elif as_json:
        spec = found.read_spec().model_dump(mode="json", exclude={"schema_version"})
        print_json({**line_of(found), "spec": spec, "leaderboard_sha256": digest(table), "leaderboard": table})
    else:
        print_sweep(found, table)


def stop(
    sweep: SweepArgument,
    reason: Annotated[str, typer.Option(help="The reason to record.")] = "stopped by a person",
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Ask what runs of the sweep to save and stop, trials or a stage around them; it can be continued later."""
    from crucible.errors import ConfigError, RecordDamaged
    from crucible.jobs.job import Job
    from crucible.jobs.records import EndReason, StopRequest

    found = open_sweep(open_store(store), sweep)
    request, prepared = StopRequest(end_reason=EndReason.CANCELLED, reason=reason), found.read_spec().prepared_by
    asked: list[int] = []
    stages = [prepared] if prepared else []
    for trial in found.read_trials():
        job = found.job(trial.number)
        if trial.state == "running" and _ask_to_stop(job, request):
            asked.append(trial.number)
        with suppress(RecordDamaged):
            stages += [run.job for run in job.read_stages() if run.job]
    stages = [name for name in stages if _ask_to_stop(Job(found.root, name), request)]
    if not asked and not stages:
        where = store_option(found.root)
        raise ConfigError(
            f"sweep {sweep} has no running trial; `crucible sweeps show {sweep}{where}` shows where it stands"
        )
    if as_json:
        print_json({"sweep": sweep, "trials": asked, "stages": stages, "reason": reason})
    else:
        what = [f"trials {', '.join(map(str, asked))}"] if asked else []
        typer.echo(f"{' and '.join([*what, *stages])} of {sweep} are asked to save and stop; the sweep ends then")


def _ask_to_stop(job: Job, request: StopRequest) -> bool:
    """Whether an attempt of the job is not over, and is asked now."""
    attempts = job.attempts()
    if not attempts or attempts[-1].read_outcome() is not None:
        return False
    attempts[-1].request_stop(request)
    return True


def limits(
    sweep: SweepArgument,
    max_trials: Annotated[str | None, typer.Option(help="Trials in all.")] = None,
    max_cost_usd: Annotated[str | None, typer.Option(help="Dollars over all trials, or none.")] = None,
    max_hours: Annotated[str | None, typer.Option(help="Hours since the sweep was made, or none.")] = None,
    finish_by: Annotated[str | None, typer.Option(help="A time with its zone, or none.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show or change what a sweep may use; a running sweep follows a change within seconds."""
    found = open_sweep(open_store(store), sweep)
    given = {"max_trials": max_trials, "max_cost_usd": max_cost_usd, "max_hours": max_hours, "finish_by": finish_by}
    changed = change_limits(found, given)
    if as_json:
        print_json(changed.model_dump(mode="json", exclude={"schema_version"}))
    else:
        typer.echo(f"{sweep}: {_limits_line(found)}")


def continue_(
    sweep: SweepArgument,
    max_trials: Annotated[str | None, typer.Option(help="Trials in all.")] = None,
    max_cost_usd: Annotated[str | None, typer.Option(help="The new cap in dollars over all trials, or none.")] = None,
    max_hours: Annotated[str | None, typer.Option(help="Hours since the sweep was made, or none.")] = None,
    finish_by: Annotated[str | None, typer.Option(help="A new deadline with its zone, or none.")] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Continue a sweep that stopped at its limits or was cancelled, or give it more trials; raises the limits first.

    Nothing is trained twice, and its decisions are those it would have made without the stop.
    """
    from crucible.errors import ConfigError
    from crucible.jobs.status import JobState
    from crucible.local.continuing import run_again
    from crucible.supervision.heartbeat import is_supervised

    found = open_sweep(open_store(store), sweep)
    status = found.read_status()
    if status is not None and status.state is JobState.RUNNING and is_supervised(found.root, sweep):
        raise ConfigError(
            f"sweep {sweep} is running; `crucible sweeps limits {sweep}{store_option(found.root)}` changes its limits "
            f"while it does"
        )
    given = {"max_trials": max_trials, "max_cost_usd": max_cost_usd, "max_hours": max_hours, "finish_by": finish_by}
    changed = change_limits(found, given)
    parameters = changed.model_dump(mode="json", exclude={"schema_version"}) | {"sweep": sweep}
    parameters["finish_by"] = parameters["finish_by"] or ""
    deployment = DEPLOYMENT
    if found.read_spec().config is None:  # what is searched is on record; its folder may have changed since
        deployment = SCRIPT_DEPLOYMENT
        parameters |= {"space": None, "space_file": None, "command": "", "code": "", "data": {}}
    flow_run = run_again(f"sweep {sweep}", status.flow_run_id if status else "", deployment, parameters)
    if as_json:
        print_json({"sweep": sweep, "flow_run": flow_run})
    else:
        typer.echo(f"{sweep} continues in flow run {flow_run} ({_limits_line(found)})")


def change_limits(sweep: Sweep, given: dict[str, str | None]) -> SweepLimits:
    """Set the limits that were typed (`none` lifts one), and return those in force. Raises `ConfigError`."""
    from pydantic import ValidationError

    from crucible.errors import ConfigError
    from crucible.moments import moment_to_come
    from crucible.settings import explain_validation_error
    from crucible.sweeps import SweepLimits

    if not sweep.has_limits():
        raise ConfigError(f"sweep {sweep.sweep_id} has not begun; start it again as you started it")
    changes: dict[str, Any] = {
        name: None if value.lower() == "none" else value for name, value in given.items() if value is not None
    }
    if changes.get("finish_by"):
        changes["finish_by"] = moment_to_come(changes["finish_by"], None)
    if changes:
        try:
            sweep.set_limits(SweepLimits.model_validate({**sweep.read_limits().model_dump(), **changes}))
        except ValidationError as error:
            raise ConfigError(explain_validation_error(error)) from error
    return sweep.read_limits()


def open_sweep(store: Store, name: str) -> Sweep:
    """The sweep of that name. Raises `ConfigError` naming the nearest ones when there is none."""
    from crucible.errors import ConfigError
    from crucible.sweeps import Sweep

    found = Sweep(store, name)
    if not found.exists():
        raise ConfigError(
            f"sweep: there is no sweep {name!r} in {store.uri}; "
            f"{meant(name, Sweep.ids(store), f'crucible sweeps ls{store_option(store)}')}"
        )
    return found


def line_of(sweep: Sweep) -> dict[str, Any]:
    """A sweep in `ls --json`."""
    from crucible.sweeps.trials import best_trial

    trials, status = sweep.read_trials(), sweep.read_status()
    best = best_trial(trials)
    return {
        "sweep": sweep.sweep_id,
        "state": status.state if status else None,
        "reason": status.reason if status else "",
        "trials": len(trials),
        "max_trials": sweep.read_limits().max_trials if sweep.has_limits() else None,
        "failed": sum(bool(trial.failure) for trial in trials),
        "steps": sum(trial.steps for trial in trials),
        "best_trial": best.number if best else None,
        "metric": (metric := sweep.read_spec().objective.metric),
        metric: best.value if best else None,
        "cost_usd": sum(trial.cost_usd for trial in trials),
        "created_at": sweep.read_spec().created_at.isoformat(),
    }


def print_sweep(sweep: Sweep, table: list[dict[str, Any]]) -> None:
    """Print where a sweep stands, and its leaderboard."""
    spec, status = sweep.read_spec(), sweep.read_status()
    cost, seconds = (sum(row[name] for row in table) for name in ("cost_usd", "seconds"))
    print_facts(
        {
            "sweep": sweep.sweep_id,
            "state": f"{status.state}: {status.reason}" if status else "not started",
            "search": f"{spec.sampler}, {spec.schedule}, {spec.rungs}; {spec.objective.goal} {spec.objective.label}",
            "trials": f"{len(table)}, {spec.parallelism} at a time on {spec.pool}",
            "time": f"{duration(seconds)} of machine time",
            "cost": money(cost),
            "limits": _limits_line(sweep),
            "records": sweep.store.uri,
        }
    )
    if not table:
        return
    typer.echo()
    names, metric = sweep.read_space().names, spec.objective.metric
    headings = ["rank", "trial", *names, "step", metric.replace("_", " "), "state", "cost", "job"]
    rows = [
        [
            str(row["rank"]),
            str(row["trial"]),
            *(_cell(row[name]) for name in names),
            f"{row['step']:,}",
            UNKNOWN if row[metric] is None else f"{row[metric]:.4f}",
            f"{row['state']}: {row['failure']}" if row["failure"] else str(row["state"]),
            money(row["cost_usd"]),
            str(row["job"]),
        ]
        for row in table
    ]
    print_table(headings, rows, numbers=(0, 1, *range(2, len(names) + 4), len(names) + 5))


def _limits_line(sweep: Sweep) -> str:
    if not sweep.has_limits():
        return "none set yet"
    limits = sweep.read_limits()
    parts = [
        f"{limits.max_trials} trials",
        money(limits.max_cost_usd) if limits.max_cost_usd is not None else "any cost",
        f"{limits.max_hours:g} hours" if limits.max_hours is not None else "any time",
    ]
    parts += [f"until {limits.finish_by:%Y-%m-%d %H:%M} UTC"] if limits.finish_by else []
    return ", ".join(parts)


def _cell(value: object) -> str:
    if value is None:
        return UNKNOWN
    return f"{value:.4g}" if isinstance(value, float) else str(value)
