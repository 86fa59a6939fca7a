"""`crucible checkpoints`: list, verify and fetch a job's checkpoints."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from crucible.cli.records import JobArgument, JsonOption, StoreOption, open_job, open_store, print_json
from crucible.formatting import print_table, size

if TYPE_CHECKING:
    from crucible.checkpoints.commits import Checkpoints
    from crucible.checkpoints.manifest import Checkpoint

StepOption = Annotated[int | None, typer.Option(help="Only the checkpoint of this step.", min=0)]


def register(app: typer.Typer) -> None:
    """Add the `checkpoints` commands."""
    group = typer.Typer(help="Checkpoints: what a job has saved, and whether it is whole.", no_args_is_help=True)
    group.command("ls")(list_)
    group.command()(verify)
    group.command()(get)
    app.add_typer(group, name="checkpoints")


def list_(job: JobArgument, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """List a job's checkpoints, newest first."""
    from crucible.checkpoints.manifest import best_checkpoint
    from crucible.reports.report import loss_cell

    found = _open(store, job).found()
    checkpoints = [checkpoint for checkpoint, problem in found if problem is None]
    damaged = [(checkpoint, problem) for checkpoint, problem in found if problem is not None]
    best = best_checkpoint(checkpoints)
    if as_json:
        lines = [{**_line(checkpoint), "best": checkpoint is best} for checkpoint in checkpoints]
        print_json([*lines, *({"step": c.step, "attempt": c.attempt, "problem": problem} for c, problem in damaged)])
        return
    for _, problem in damaged:
        typer.echo(f"warning: {problem}", err=True)
    if not checkpoints:
        typer.echo(f"job {job} has saved nothing yet")
    else:
        rows = [
            [
                f"{checkpoint.shown_step:,}",
                str(checkpoint.attempt),
                loss_cell(checkpoint),
                size(checkpoint.bytes),
                f"{checkpoint.committed_at:%Y-%m-%d %H:%M:%S}",
                ", ".join(["best"] * (checkpoint is best) + ["with the outputs"] * checkpoint.has_output),
            ]
            for checkpoint in checkpoints
        ]
        print_table(["step", "attempt", "val loss", "size", "committed (UTC)", ""], rows, numbers=(0, 1, 2, 3))


def verify(job: JobArgument, step: StepOption = None, store: StoreOption = None, as_json: JsonOption = False) -> None:
    """Fetch every checkpoint and compare each file's size and sha256 with the manifest; exit 1 if one is damaged."""
    from crucible.checkpoints.restore import choose_checkpoint, fetch
    from crucible.errors import CheckpointError

    found = _open(store, job)
    results: list[dict[str, Any]] = []
    for checkpoint, damage in found.damaged():
        if step is None or checkpoint.step == step:
            results.append({"step": checkpoint.step, "attempt": checkpoint.attempt, "problem": damage})
            if not as_json:
                typer.echo(f"step {checkpoint.step:>10,}  DAMAGED: {damage}")
    if step is None:
        readable = found.list()
    else:
        readable = [] if results else [choose_checkpoint(found, str(step), f"--step {step}")]
    for checkpoint in readable:
        with tempfile.TemporaryDirectory(prefix="crucible-verify-") as scratch:
            problem = fetch(found, checkpoint, Path(scratch) / checkpoint.name)
        results.append({**_line(checkpoint), "problem": problem})
        if not as_json:
            typer.echo(f"step {checkpoint.shown_step:>10,}  {'whole' if problem is None else f'DAMAGED: {problem}'}")
    if as_json:
        print_json(results)
    damaged = [str(result["step"]) for result in results if result["problem"]]
    if damaged:
        raise CheckpointError(
            f"{len(damaged)} of {len(results)} checkpoints of {job} are damaged (step {', '.join(damaged)}); a resumed "
            f"attempt passes them over and takes the one before"
        )
    if not results and not as_json:
        typer.echo(f"job {job} has saved nothing yet")


def get(
    job: JobArgument,
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="A folder; the checkpoint becomes DIR/step-….")],
    step: Annotated[int | None, typer.Option(help="Which one; default: the newest.", min=0)] = None,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Fetch one checkpoint, verified."""
    from crucible.checkpoints.restore import choose_checkpoint, fetch_chosen
    from crucible.contract import step_name
    from crucible.errors import ConfigError

    found = _open(store, job)
    which = "" if step is None else str(step)
    checkpoint = choose_checkpoint(found, which, f"--step {which or 'newest'}")
    target = folder / step_name(checkpoint.step)
    if target.exists():
        raise ConfigError(f"DIR: {target} is there already; remove it or name another folder")
    partial = target.with_name(target.name + ".partial")
    fetch_chosen(found, checkpoint, partial)
    partial.rename(target)
    if as_json:
        print_json({**_line(checkpoint), "folder": str(target)})
    else:
        typer.echo(str(target))


def _open(store: str | None, job: str) -> Checkpoints:
    from crucible.checkpoints.commits import Checkpoints

    return Checkpoints(open_job(open_store(store), job))


def _line(checkpoint: Checkpoint) -> dict[str, Any]:
    return {
        "step": checkpoint.step,
        "shown_step": checkpoint.shown_step,
        "attempt": checkpoint.attempt,
        "val_loss": checkpoint.val_loss,
        "compared_loss": checkpoint.compared_loss,
        "bytes": checkpoint.bytes,
        "files": [file.name for file in checkpoint.files],
        "committed_at": checkpoint.committed_at.isoformat(),
    }
