"""The options that `crucible run` and `crucible tune` share, and the settings that they make with crucible.yaml."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crucible.formatting import counted, size

if TYPE_CHECKING:
    from crucible.local.run_script import ScriptRun
    from crucible.run_config import RunConfig
    from crucible.store import Store

Command = Annotated[
    list[str] | None, typer.Argument(metavar="-- COMMAND…", help="What to run; default: crucible.yaml's command.")
]
Pool = Annotated[
    str | None,
    typer.Option(
        help="Work pool: local, docker-gpu, ec2-spot, ec2-on-demand, modal, slurm or skypilot; default: local."
    ),
]
MaxCost = Annotated[
    float | None, typer.Option(help="Save and stop before the cost exceeds so many US dollars; default: no cap.")
]
MaxHours = Annotated[float | None, typer.Option(help="Save and stop after so many hours; default: no cap.")]
FinishBy = Annotated[
    str | None, typer.Option(help="Save and stop at this time, such as 2026-05-07T18:00+02:00; default: no deadline.")
]
Project = Annotated[
    str | None, typer.Option(help="The project whose budget and cost report count it; default: default.")
]
Gpus = Annotated[int | None, typer.Option(min=0, help="GPUs of each attempt; 0: none; default: what the pool gives.")]
Nodes = Annotated[
    str | None, typer.Option(help="Machines that train together: 2, or 2..4 for as many as there are; default: 1.")
]
Env = Annotated[
    list[str] | None,
    typer.Option(help="Environment variable: NAME=VALUE, or NAME for its value in this shell. Repeatable."),
]
Secret = Annotated[
    list[str] | None,
    typer.Option(help="NAME of an environment variable that stays secret; see crucible secret. Repeatable."),
]
Include = Annotated[
    list[str] | None, typer.Option(help="File or glob that belongs to the code although git ignores it. Repeatable.")
]
Data = Annotated[list[str] | None, typer.Option(help="File or folder that the script reads. Repeatable.")]
ResumeFlag = Annotated[
    str | None,
    typer.Option(help="Arguments to append when it restarts from a checkpoint, such as --resume; default: none."),
]
CheckpointPath = Annotated[
    str | None,
    typer.Option(
        help="File, folder or glob in which the script saves; default: none, so that a restart begins at step 0 unless "
        "the script follows the workload contract."
    ),
]
Metrics = Annotated[
    str | None,
    typer.Option(
        help="Where its metrics are: nanogpt, huggingface, lightning, jsonl:FILE, tensorboard:DIR, or a regular "
        "expression with (?P<step>…) over printed lines; default: JSON lines in $CRUCIBLE_METRICS_FILE."
    ),
]
Output = Annotated[
    list[str] | None,
    typer.Option(help="File, folder or glob to keep at the end; default: all that it wrote, up to 2 GiB. Repeatable."),
]
Tracker = Annotated[
    list[str] | None,
    typer.Option(help="Also show the curves in tensorboard, mlflow, wandb, trackio or a Tracker block. Repeatable."),
]
StoreName = Annotated[str | None, typer.Option(help="Store block, or an address (s3://…); default: default.")]
Folder = Annotated[Path, typer.Option(help="The folder of the script.", file_okay=False, exists=True)]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", help="Settings file; default: the folder's crucible.yaml.", dir_okay=False)
]


@dataclass(frozen=True)
class Added:
    """What options add to lists of the file, rather than replace."""

    env: list[str] | None
    secret: list[str] | None
    include: list[str] | None
    data: list[str] | None
    gpus: int | None
    nodes: str | None = None


def read_config(folder: Path, file: Path | None, given: dict[str, Any], added: Added, ask: bool) -> RunConfig:
    """The settings of the file under the options, complete; `ask`: whether a person may be asked.

    Raises `ConfigError` with one message for all that is wrong.
    """
    from crucible.errors import ConfigError
    from crucible.resources import Resources
    from crucible.run_config import FILE, RunConfig

    if (folder / "flows").is_dir() and (folder / "crucible").is_dir() and (folder / "prefect.yaml").is_file():
        raise ConfigError(f"--folder: {folder.resolve()} is Crucible's own folder; run it in the folder of your script")
    if file is not None and not file.is_file():
        raise ConfigError(f"--config: there is no file {file}")
    config = RunConfig.from_file(
        file or folder / FILE, {key: value for key, value in given.items() if value not in (None, [])}
    )
    config = _extended(config, added)
    asked = {name: value for name, value in (("gpus", added.gpus), ("nodes", added.nodes)) if value is not None}
    if asked:
        resources = Resources.parse({**config.resources.model_dump(exclude_unset=True), **asked})
        config = config.model_copy(update={"resources": resources})
    return ask_about_left_out(config, folder, ask)


def metrics_source(text: str | None) -> Any:
    """What `--metrics` names, as crucible.yaml has it: a format, `jsonl:FILE`, or a pattern."""
    from typing import get_args

    from crucible.script_config import MetricsFormat

    if text is None or text in get_args(MetricsFormat):
        return text
    kind, found, path = text.partition(":")
    if found and kind in ("jsonl", "tensorboard"):
        return {"format": kind, "path": path}
    return {"format": "pattern", "pattern": text}


def _extended(config: RunConfig, added: Added) -> RunConfig:
    """The configuration with what the command line adds to its lists."""
    import os

    from crucible.errors import ConfigError

    variables = dict(config.env)
    for entry in added.env or []:
        name, given, value = entry.partition("=")
        if not given and name not in os.environ:
            raise ConfigError(f"--env {name}: this shell has no variable {name}; write --env {name}=VALUE")
        variables[name] = value if given else os.environ[name]
    changes = {
        "env": variables,
        "secrets": [*config.secrets, *(name for name in added.secret or [] if name not in config.secrets)],
        "include": [*config.include, *(added.include or [])],
        "data": [*config.data, *(path for path in added.data or [] if path not in config.data)],
    }
    return type(config).parse({**config.model_dump(exclude_unset=True), **changes})


def ask_about_left_out(config: RunConfig, folder: Path, ask: bool) -> RunConfig:
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


def print_plan(planned: ScriptRun, folder: Path, more: dict[str, str] | None = None) -> None:
    """What travels, what stays, what runs and where; `more` after the command."""
    import shlex

    selection, record = planned.packed.selection, planned.packed.record
    count = counted(planned.packed.package.files, "file")
    rows = {
        "command": shlex.join(planned.script.command),
        **(more or {}),
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


def _saves(planned: ScriptRun) -> str:
    if planned.script.checkpoint is None:
        kept = "" if planned.script.output else "; what it wrote is kept at the end"
        return f"nothing before its end, unless it uses crucible.workload (checkpoint: names what it saves){kept}"
    resume = f", restarted with {' '.join(planned.script.resume)}" if planned.script.resume else ""
    return f"{planned.script.checkpoint.path}{resume}"


def start(api: Any, planned: ScriptRun, store: str) -> tuple[str, Store]:
    """Start its flow run, and print where to watch it; returns the run's id and the opened store.

    Raises `CrucibleError` where its pool, its secrets or the server are not ready.
    """
    from crucible.local.run_script import open_store, require_ready, start_run

    require_ready(api, planned)
    flow_run = start_run(api, planned, lambda line: typer.echo(line, err=True))
    opened = open_store(api, store)
    typer.echo(f"started   {planned.job}, flow run {flow_run}{ui_page(api, flow_run)}", err=True)
    return flow_run, opened


def ui_page(api: Any, flow_run: str) -> str:
    """Where the Prefect UI shows the flow run, after a colon; empty where there is no UI."""
    from crucible.local.services import ui_url

    page = ui_url(str(api.base_url).rstrip("/"))
    return f": {page}/runs/flow-run/{flow_run}" if page else ""
