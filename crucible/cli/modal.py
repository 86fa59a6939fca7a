"""`crucible modal pool | cost`: GPUs on Modal."""

from __future__ import annotations

from datetime import datetime
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="GPUs on Modal: the work pool, and what it has cost.")


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="modal")


@app.command()
def pool(
    image: Annotated[
        str | None, typer.Option(help="Image with the project in its working directory; default: built from images/.")
    ] = None,
    gpu: Annotated[str, typer.Option(help="GPU types, tried in turn, separated by commas; empty: CPUs.")] = "L4",
    env: Annotated[
        list[str] | None, typer.Option("--env", help="NAME=value for every sandbox, such as PREFECT_API_URL.")
    ] = None,
    secret: Annotated[
        list[str] | None, typer.Option("--secret", help="Modal Secret with the store's credentials.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the pool.")] = "modal",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=value of another setting, such as registry_secret or dockerfile."),
    ] = None,
) -> None:
    """Put the pool and its deployment train/modal on the Prefect server, or bring them up to date."""
    from crucible.cli.inputs import named_values
    from crucible.pools.common.offered import parse_settings
    from crucible.pools.modal.pool import PoolOptions
    from crucible.pools.modal.pool import register as register_pool

    gpus = tuple(part.strip() for part in gpu.split(",") if part.strip())
    environment, others = named_values("--env", env), parse_settings(named_values("--set", settings))
    secrets = tuple(secret or ())
    register_pool(
        PoolOptions(name=name, image=image, gpu=gpus, secrets=secrets, environment=environment, settings=others)
    )
    typer.echo(f"Pool {name} is ready; start its worker with:")
    typer.echo(f"  prefect worker start --pool {name} --type modal --name {name}-1")


@app.command()
def cost(
    tag: Annotated[
        str, typer.Option(help="Sum by the values of this tag: job, project, owner, stage, attempt.")
    ] = "job",
    since: Annotated[datetime | None, typer.Option(help="From this hour on, UTC; default: seven days ago.")] = None,
    app_name: Annotated[str, typer.Option("--app", help="Modal App of the pool.")] = "crucible",
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """What Modal itself says its sandboxes have cost. It is minutes late, and the last word."""
    import asyncio
    import json

    from crucible.pools.modal.sandboxes import billed_by_tag

    dollars = asyncio.run(billed_by_tag(tag, app_name, since))
    if as_json:
        typer.echo(json.dumps(dollars))
        return
    for value, usd in sorted(dollars.items(), key=lambda row: -row[1]):
        typer.echo(f"{usd:12.4f}  {value or f'(without tag {tag})'}")
    typer.echo(f"{sum(dollars.values()):12.4f}  USD in all")
