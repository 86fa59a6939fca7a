"""`crucible kubernetes pool`: pods on a Kubernetes cluster."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Pods on a Kubernetes cluster, through prefect-kubernetes.")


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="kubernetes")


@app.callback()
def group() -> None:
    """Pods on a Kubernetes cluster, through prefect-kubernetes."""


@app.command()
def pool(
    image: Annotated[str | None, typer.Option(help="Image with Crucible, in a registry of the cluster's.")] = None,
    gpus: Annotated[int | None, typer.Option(help="NVIDIA GPUs of a pod; 0: none.", min=0)] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", help="NAME=value for every pod, such as PREFECT_API_URL.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="NAME=value of another setting, such as namespace."),
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the pool.")] = "kubernetes",
) -> None:
    """Put the pool and its deployments on the Prefect server, or bring them up to date."""
    from crucible.cli.inputs import named_values
    from crucible.local.state import PROJECT
    from crucible.pools.common.offered import parse_settings
    from crucible.pools.kubernetes import PoolOptions
    from crucible.pools.kubernetes import register as register_pool

    given = {key: value for key, value in {"image": image, "gpus": gpus}.items() if value is not None}
    others = parse_settings(named_values("--set", settings))
    register_pool(PoolOptions(PROJECT, named_values("--env", env), name, {**given, **others}))
    typer.echo(f"Pool {name} is ready. Start its worker in an environment with prefect-kubernetes:")
    typer.echo(f"  prefect worker start --pool {name} --type kubernetes")
