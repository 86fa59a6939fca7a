"""`crucible run`: start a training script of your own with one command, and follow it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crucible.formatting import counted, duration, money, size

if TYPE_CHECKING:
    from crucible.local.follow import Standing
    from crucible.local.run_script import ScriptRun
    from crucible.run_config import RunConfig
    from crucible.script_config import ScriptConfig
    from crucible.store import Store

PANEL = "Your own script"
EXIT_FAILED, EXIT_STOPPED, EXIT_DETACHED = 1, 75, 130

Command = Annotated[
    list[str] | None, typer.Argument(metavar="-- COMMAND…", help="What to run; without it, crucible.yaml's command.")
]
Pool = Annotated[str | None, typer.Option(help="local, docker-gpu, ec2-spot, ec2-on-demand or modal.")]
Env = Annotated[list[str] | None, typer.Option(help="NAME=VALUE, or NAME for the value in this shell.")]
Secret = Annotated[list[str] | None, typer.Option(help="NAME of a variable with a secret; see crucible secret.")]
Metrics = Annotated[
    str | None,
    typer.Option(help="nanogpt, huggingface, lightning, or a regular expression with (?P<step>…); see the docs."),
]


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL)(run)


def run(
    command: Command = None,
    pool: Pool = None,
    name: Annotated[str | None, typer.Option(help="The job's name. An existing one is continued.")] = None,
    max_cost_usd: Annotated[float | None, typer.Option(help="Stop, saved, before it costs more.")] = None,
    max_hours: Annotated[float | None, typer.Option(help="Stop, saved, after so many hours.")] = None,
    finish_by: Annotated[str | None, typer.Option(help="Stop, saved, at this time, with its zone.")] = None,
    project: Annotated[str | None, typer.Option(help="Whose money it is.")] = None,
    gpus: Annotated[int | None, typer.Option(min=0, help="GPUs of each attempt; 0: none.")] = None,
    env: Env = None,
    secret: Secret = None,
    include: Annotated[list[str] | None, typer.Option(help="An ignored file that belongs to the code.")] = None,
    data: Annotated[list[str] | None, typer.Option(help="A file or folder that the script reads.")] = None,
    resume_flag: Annotated[str | None, typer.Option(help="Arguments added after a restart, such as --resume.")] = None,
    checkpoint: Annotated[str | None, typer.Option(help="What the script saves: a file, a folder or a glob.")] = None,
    metrics: Metrics = None,
    output: Annotated[list[str] | None, typer.Option(help="What to keep when the script is done.")] = None,
    store: Annotated[str | None, typer.Option(help="Store block or address.")] = None,
    folder: Annotated[Path, typer.Option(help="The folder of the script.", file_okay=False, exists=True)] = Path(),
    follow: Annotated[bool, typer.Option("--follow/--detach", help="Stay until the end, or return at once.")] = True,
    sample_log: Annotated[
        Path | None, typer.Option(help="With --dry-run: try the metrics on this file of printed lines.", exists=True)
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check and show everything, start nothing.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
) -> None:
    """Run a training script of your own, in a copy of its folder, on any pool."""
    from crucible.errors import ConfigError
    from crucible.local import access
    from crucible.local.run_script import open_store, plan_run, require_ready, start_run
    from crucible.run_config import RunConfig

    given: dict[str, Any] = {
        "command": command,
        "pool": pool,
        "max_cost_usd": max_cost_usd,
        "max_hours": max_hours,
        "finish_by": finish_by,
        "project": project,
        "resume": resume_flag,
        "checkpoint": checkpoint,
        "metrics": _metrics(metrics),
        "output": output,
        "store": store,
    }
    if (folder / "flows").is_dir() and (folder / "crucible").is_dir() and (folder / "prefect.yaml").is_file():
        raise ConfigError(f"--folder: {folder.resolve()} is Crucible's own folder; run it in the folder of your script")
    config = RunConfig.from_folder(folder, {key: value for key, value in given.items() if value not in (None, [])})
    config = _extended(config, env or [], secret or [], include or [], data or [])
    if gpus is not None:
        config = config.model_copy(update={"resources": config.resources.model_copy(update={"gpus": gpus})})
    config = _ask_about_left_out(config, folder, ask=not as_json and not dry_run)
    planned = plan_run(config, folder, name or "")
    _print_plan(planned, folder)
    if dry_run or sample_log:
        if sample_log:
            _try_metrics(planned.script, sample_log)
        if as_json:
            _print_json({"job": planned.job, "code": planned.packed.record.digest, **planned.parameters()})
        return
    with access.connect_here() as api:
        require_ready(api, config)
        flow_run = start_run(api, planned, lambda line: typer.echo(line, err=True))
        opened = open_store(api, config.store)
        page = _page(api)
        typer.echo(
            f"started   {planned.job}, flow run {flow_run}{page and f': {page}/runs/flow-run/{flow_run}'}", err=True
        )
        if not follow:
            typer.echo(f"detached  follow it: crucible jobs show {planned.job}", err=True)
            if as_json:
                _print_json({"job": planned.job, "flow_run": flow_run, "code": planned.packed.record.digest})
            return
        standing = _follow(flow_run, opened, planned.job)
    _conclude(standing, planned.job, flow_run, as_json)


def _metrics(text: str | None) -> Any:
    from typing import get_args

    from crucible.script_config import MetricsFormat

    if text is None or text in get_args(MetricsFormat):
        return text
    kind, found, path = text.partition(":")
    if found and kind in ("jsonl", "tensorboard"):
        return {"format": kind, "path": path}
    return {"format": "pattern", "pattern": text}


def _extended(config: RunConfig, env: list[str], secret: list[str], include: list[str], data: list[str]) -> RunConfig:
    """The configuration with what the command line adds to its lists."""
    import os

    from crucible.errors import ConfigError

    variables = dict(config.env)
    for entry in env:
        name, given, value = entry.partition("=")
        if not given and name not in os.environ:
            raise ConfigError(f"--env {name}: this shell has no variable {name}; write --env {name}=VALUE")
        variables[name] = value if given else os.environ[name]
    changes = {
        "env": variables,
        "secrets": [*config.secrets, *(name for name in secret if name not in config.secrets)],
        "include": [*config.include, *include],
        "data": [*config.data, *(path for path in data if path not in config.data)],
    }
    return type(config).parse({**config.model_dump(exclude_unset=True), **changes})


def _ask_about_left_out(config: RunConfig, folder: Path, ask: bool) -> RunConfig:
    """What the command names and git ignores: asked on a terminal, refused elsewhere."""
    import sys

    from crucible.code.command import named_but_left_out
    from crucible.code.selection import IGNORE_FILE, select
    from crucible.errors import ConfigError

    script = config.script()
    written = [*config.output, config.metrics.path, *([config.checkpoint.path] if config.checkpoint else [])]
    selection = select(folder, config.include, config.data)
    missing = named_but_left_out(script.command, [path for path in written if path], selection)
    if not missing:
        return config
    if not (ask and sys.stdin.isatty()):
        path, files = next(iter(missing.items()))
        raise ConfigError(
            f"command: it names {path}, and git ignores {', '.join(files[:3])}, so the script would not find it; carry "
            f"it with --data {path} (large files) or --include {path}, or name it in {IGNORE_FILE}"
        )
    changes: dict[str, list[str]] = {"include": list(config.include), "data": list(config.data)}
    for path, files in missing.items():
        typer.echo(f"The command names {path}, and git ignores {', '.join(files[:3])}.", err=True)
        answer = typer.prompt(
            "Carry it as (d)ata, (i)nclude it in the code, or (l)eave it behind?", default="d", err=True
        )
        kind = {"d": "data", "i": "include"}.get(answer[:1].lower())
        if kind:
            changes[kind].append(path)
    return type(config).parse({**config.model_dump(exclude_unset=True), **changes})


def _print_plan(planned: ScriptRun, folder: Path) -> None:
    """What travels, what stays, what runs and where."""
    import shlex

    selection, record = planned.packed.selection, planned.packed.record
    count = counted(planned.packed.package.files, "file")
    rows = {
        "command": shlex.join(planned.script.command),
        "code": f"{count}, {size(planned.packed.package.bytes)} of {folder.resolve()} ({record.digest[:12]})",
        "data": ", ".join(f"{entry} ({size(found.bytes)})" for entry, found in planned.packed.data.items()),
        "left out": selection.describe_left_out(),
        "packages": f"the image of {planned.dockerfile}" if planned.dockerfile else str(planned.dependencies),
        "saves": _saves(planned),
        "pool": planned.config.pool,
    }
    for name, value in rows.items():
        if value:
            typer.echo(f"{name:<10}{value}", err=True)


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
        raise typer.Exit(EXIT_FAILED)


def _saves(planned: ScriptRun) -> str:
    if planned.script.checkpoint is None:
        kept = "" if planned.script.output else "; without output: what it wrote is kept at the end"
        return f"by the workload contract, else it starts from the beginning after a restart{kept}"
    resume = f", restarted with {' '.join(planned.script.resume)}" if planned.script.resume else ""
    return f"{planned.script.checkpoint.path}{resume}"


def _page(api: Any) -> str:
    from crucible.local.services import ui_url

    return ui_url(str(api.base_url).rstrip("/"))


def _follow(flow_run: str, store: Store, job: str) -> Standing:
    """Show the run until it has ended; Ctrl-C asks whether to detach or to stop."""
    from crucible.cli.following import Screen
    from crucible.local import access
    from crucible.local.follow import follow

    stopping = False
    with access.connect_here(seconds=10) as api, Screen(api, job) as screen:
        while True:
            try:
                for standing in follow(api, flow_run, store, job):
                    screen.show(standing)
                return standing
            except KeyboardInterrupt:
                if stopping or not screen.ask_stop():
                    typer.echo(f"\ndetached: {job} goes on. Stop it: crucible jobs stop {job}", err=True)
                    raise typer.Exit(EXIT_DETACHED) from None
                stopping = True
                _stop(store, job)


def _stop(store: Store, job: str) -> None:
    from crucible.errors import CrucibleError
    from crucible.jobs.job import Job
    from crucible.jobs.records import EndReason, StopRequest
    from crucible.supervision.stop_job import stop_job

    try:
        done = stop_job(Job.open(store, job), StopRequest(end_reason=EndReason.CANCELLED, reason="stopped by a person"))
    except CrucibleError as error:
        typer.echo(f"error: {error}", err=True)
    else:
        typer.echo(done.message, err=True)


def _conclude(standing: Standing, job: str, flow_run: str, as_json: bool) -> None:
    """Print how it ended, and exit with the code for it."""
    summary = standing.summary
    if as_json:
        figures = {} if summary is None else {"step": summary.step, "cost_usd": summary.cost_usd}
        _print_json({"job": job, "flow_run": flow_run, "state": standing.state, "message": standing.message, **figures})
    if summary is not None:
        attempts = counted(len(summary.attempts), "attempt")
        steps = f"step {summary.step:,}, " if summary.step else ""
        line = f"{steps}{attempts}, {duration(summary.seconds)}, {money(summary.cost_usd)}"
        typer.echo(f"{standing.state.lower():<10}{line}; crucible jobs show {job}", err=True)
    if standing.state == "COMPLETED":
        return
    typer.echo(f"{'':10}{standing.message}", err=True)
    if standing.state == "CANCELLED":
        typer.echo(f"{'':10}go on: crucible jobs continue {job}", err=True)
        raise typer.Exit(EXIT_STOPPED)
    raise typer.Exit(EXIT_FAILED)


def _print_json(value: Mapping[str, Any]) -> None:
    import json

    typer.echo(json.dumps(value, indent=2, ensure_ascii=False))
