"""`crucible tensorboard` and `crucible track`: a job's curves in the tools that people know."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from crucible.cli.records import StoreOption, open_job, open_store

if TYPE_CHECKING:
    from crucible.trackers.config import TrackerConfig

NEWEST = 20
"""Jobs that are shown where none is named."""


def register(app: typer.Typer) -> None:
    app.command()(tensorboard)
    app.command()(track)


def tensorboard(
    jobs: Annotated[
        list[str] | None, typer.Argument(metavar="[JOB…]", help="Jobs to compare; default: the 20 newest.")
    ] = None,
    host: Annotated[str, typer.Option(help="The address that TensorBoard listens on.")] = "localhost",
    port: Annotated[int, typer.Option(help="Its port; 0: a free one.", min=0, max=65535)] = 6006,
    store: StoreOption = None,
) -> None:
    """Open jobs side by side in TensorBoard, running or not; no job needs a tracker for it."""
    import tempfile
    from pathlib import Path

    from crucible.errors import ConfigError
    from crucible.trackers.view import newest_jobs, show

    opened = open_store(store)
    found = [open_job(opened, name) for name in dict.fromkeys(jobs)] if jobs else newest_jobs(opened, NEWEST)
    if not found:
        raise ConfigError(f"job: there are no jobs in {opened.uri} yet")

    def started(steps: int) -> None:
        typer.echo(f"{len(found)} jobs, {steps:,} steps; new ones are added while this runs. Ctrl-C ends it", err=True)

    with tempfile.TemporaryDirectory(prefix="crucible-tensorboard-") as folder:
        raise typer.Exit(show(Path(folder), found, host, port, started))


def track(
    job: Annotated[str, typer.Argument(metavar="JOB|SWEEP", help="The job's or the sweep's name.")],
    tracker: Annotated[list[str], typer.Option(help="tensorboard, mlflow, wandb, trackio or a Tracker block.")],
    url: Annotated[str, typer.Option(help="MLflow's tracking URI, W&B's or Trackio's server, or a Space.")] = "",
    project: Annotated[str, typer.Option(help="The tracker's project; default: the job's.")] = "",
    store: StoreOption = None,
) -> None:
    """Send what a job has reported to a tracker: one that missed something, or that the job did not have.

    Each step is sent once, however often you repeat it. Keys come from the environment.
    """
    from crucible.errors import ConfigError
    from crucible.sweeps.sweep import Sweep
    from crucible.trackers.config import split_names
    from crucible.trackers.follow import Follower

    opened = open_store(store)
    sweep = Sweep(opened, job)
    trials = sweep.read_trial_records() if sweep.exists() else []
    found = [open_job(opened, trial.job_id) for trial in trials] or [open_job(opened, job)]
    complete = True
    for name in split_names(tracker):
        config = _config(name, {"url": url, "project": project})
        follower = Follower(config, lambda: found, lambda line: typer.echo(line, err=True), finish_at_once=True)
        complete = follower.once() and complete
    if not complete:
        raise ConfigError("not everything could be sent; repeat it when the tracker answers")
    typer.echo(f"{job}: every step that was reported is in {', '.join(split_names(tracker))}")


def _config(name: str, given: dict[str, str]) -> TrackerConfig:
    from crucible.local import access
    from crucible.local.trackers import read_block
    from crucible.trackers.config import TrackerConfig, TrackerKind

    if name in set(TrackerKind):
        return TrackerConfig.parse({"name": name, "kind": name, **given}, source="--tracker")
    with access.connect_here() as api:
        block = read_block(api, name)
    return block.model_copy(update={key: value for key, value in given.items() if value})
