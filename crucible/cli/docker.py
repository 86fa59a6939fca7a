"""`crucible docker pool`: the work pool docker-gpu on any Prefect server."""

from __future__ import annotations

from dataclasses import replace
from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Containers on a Docker engine, with its GPUs.")


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="docker")


@app.command()
def pool(
    image: Annotated[
        str | None, typer.Option(help="Image; default: this tree's, which is built if need be.", show_default=False)
    ] = None,
    gpus: Annotated[str, typer.Option(help="all, a number, or device=0,2; 0: train on the CPU.")] = "all",
    memory: Annotated[
        str | None, typer.Option(help="Memory limit of a container, like 24g.", show_default=False)
    ] = None,
    network: Annotated[
        str | None, typer.Option(help="Docker network in which the Prefect server answers.", show_default=False)
    ] = None,
    at_once: Annotated[int, typer.Option(help="How many runs share the machine; 0: no limit.", min=0)] = 1,
    env: Annotated[list[str] | None, typer.Option("--env", help="NAME=value for every container.")] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help='NAME=value of another setting, such as user or volumes=["/data:/data:ro"].'),
    ] = None,
) -> None:
    """Put the pool docker-gpu and its deployment train/docker-gpu on the Prefect server, or bring them up to date."""
    from crucible.cli.inputs import named_values
    from crucible.pools.common.offered import parse_settings
    from crucible.pools.docker.images import Recipe, build, variant_for
    from crucible.pools.docker.pool import PoolOptions, register

    options = PoolOptions(
        image or "",
        gpus,
        memory,
        at_once or None,
        network,
        named_values("--env", env),
        parse_settings(named_values("--set", settings)),
    )
    image = image or build(Recipe(variant_for(gpus)), lambda line: typer.echo(line, err=True))
    name = register(replace(options, image=image))
    typer.echo(f"Pool {name} runs {image}; start its worker on the machine with the engine:")
    typer.echo(f"  prefect worker start --pool {name} --type {name}")
