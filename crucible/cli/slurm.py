"""`crucible slurm setup`: the work pool of a Slurm cluster."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="A Slurm cluster where you have an account.")


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="slurm")


@app.callback()
def group() -> None:
    """A Slurm cluster where you have an account."""


@app.command()
def setup(
    login_node: Annotated[
        str | None, typer.Option(help="user@host or a name of ~/.ssh/config; default: this machine.")
    ] = None,
    partition: Annotated[str | None, typer.Option(help="Partition; default: the cluster's.")] = None,
    account: Annotated[str | None, typer.Option(help="Account whose hours are used; default: yours.")] = None,
    qos: Annotated[str | None, typer.Option(help="Quality of service; default: yours.")] = None,
    gpus: Annotated[
        str | None, typer.Option(help="GPUs of a job, like 2 or a100:1; 0: none. Default: one where there are any.")
    ] = None,
    time_limit: Annotated[
        int | None, typer.Option(help="Minutes a job may take; default: the partition's maximum.", min=1)
    ] = None,
    venv: Annotated[
        str | None, typer.Option(help="Virtual environment with Crucible that the nodes share; default: this one.")
    ] = None,
    workdir: Annotated[
        str | None, typer.Option(help="Folder with the project that the nodes share; default: this one.")
    ] = None,
    store: Annotated[
        str | None, typer.Option(help="file:// folder that the nodes share, or s3://; default: CRUCIBLE_STORE.")
    ] = None,
    usd_per_gpu_hour: Annotated[
        float, typer.Option(help="What an hour of a GPU counts; 1 makes caps count GPU hours.", min=0)
    ] = 0.0,
    env: Annotated[list[str] | None, typer.Option("--env", help="NAME=value for every job.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=value of another setting, such as prologue or container_image."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the pool.")] = "slurm",
) -> None:
    """Ask the cluster what it has, and put the pool and its deployment on the Prefect server, or
    bring them up to date.
    """
    import asyncio
    import sys

    from crucible.cli.inputs import named_values
    from crucible.formatting import duration
    from crucible.local.state import PROJECT
    from crucible.pools.common.offered import parse_settings
    from crucible.pools.slurm.setup import SlurmSetup, set_up
    from crucible.store import default_store_uri

    wanted = SlurmSetup(
        login_node=login_node,
        partition=partition,
        account=account,
        qos=qos,
        gpus=gpus,
        time_limit_minutes=time_limit,
        venv=venv,
        workdir=workdir,
        store=store,
        usd_per_gpu_hour=usd_per_gpu_hour,
        environment=named_values("--env", env),
        name=name,
        settings=parse_settings(named_values("--set", settings)),
    )
    here = {"venv": sys.prefix, "workdir": str(PROJECT), "store": default_store_uri()}
    ready = asyncio.run(set_up(wanted, here))
    typer.echo(f"Cluster {ready.inventory.name}, Slurm {ready.inventory.version}:")
    for part in ready.inventory.partitions:
        hours = "no limit" if part.longest_seconds is None else f"{duration(part.longest_seconds)} at most"
        gpus_here = ", ".join(f"{most} {kind}".strip() for kind, most in part.gpus.items()) or "none"
        marks = [*(["preemptible"] if part.preemptible else []), *([] if part.up else ["closed now"])]
        chosen = "*" if part == ready.partition else " "
        typer.echo(f" {chosen} {part.name:16} {hours:18} GPUs of a node: {gpus_here}{''.join(f', {m}' for m in marks)}")
    typer.echo(f"Pool {name} uses {ready.partition.name} and the store {ready.environment['CRUCIBLE_STORE']}.")
    typer.echo("Start its worker where this command ran:")
    typer.echo(f"  prefect worker start --pool {name} --type slurm --name {name}-1")


@app.command()
def hours(
    allocation: Annotated[
        float | None, typer.Option(help="GPU hours that you have; shows how many are left.", min=0)
    ] = None,
    since: Annotated[str | None, typer.Option(help="Count from then on: 30d, or a date.")] = None,
    store: Annotated[str | None, typer.Option(help="The store with the jobs; default: CRUCIBLE_STORE.")] = None,
    name: Annotated[str, typer.Option(help="Name of the pool.")] = "slurm",
) -> None:
    """GPU hours that attempts on the cluster have used, by project; CPU-only attempts count as none."""
    from datetime import UTC, datetime

    from crucible.billing.costs import attempt_costs
    from crucible.catalog.offers import load_catalog
    from crucible.moments import moment_ago
    from crucible.store import existing_store

    start = None if since is None else moment_ago(since, datetime.now(UTC))
    offers = {offer.key: offer for offer in load_catalog()}
    found = [cost for cost in attempt_costs(existing_store(store), offers, since=start) if cost.pool == name]
    used: dict[str, float] = {}
    for cost in found:
        used[cost.project] = used.get(cost.project, 0.0) + cost.gpus * cost.seconds / 3600
    for project, gpu_hours in sorted(used.items(), key=lambda item: -item[1]):
        typer.echo(f"{gpu_hours:10.2f}  {project}")
    total = sum(used.values())
    left = "" if allocation is None else f"; {allocation - total:.2f} left of {allocation:g}"
    typer.echo(f"{total:10.2f}  GPU hours in {len(found)} attempts{left}")
