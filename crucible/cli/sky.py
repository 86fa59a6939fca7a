"""`crucible sky setup | pool | status`: machines on any cloud that SkyPilot reaches."""

from __future__ import annotations

from typing import Annotated

import typer

app = typer.Typer(no_args_is_help=True, help="Machines on GCP, Azure, Lambda, RunPod and others, through SkyPilot.")


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="sky")


@app.command()
def setup(
    cloud: Annotated[
        list[str] | None, typer.Option("--cloud", help="Cloud whose packages SkyPilot needs, such as gcp; repeat it.")
    ] = None,
    version: Annotated[
        str | None, typer.Option(help="SkyPilot's version; default: the one this was checked with.")
    ] = None,
) -> None:
    """Install SkyPilot into an environment of its own, below Crucible's folder."""
    from crucible.errors import ConfigError
    from crucible.pools.skypilot.configuration import CLOUDS
    from crucible.pools.skypilot.environment import VERSION, make, sky_command

    clouds = [name.lower() for name in cloud or []]
    if unknown := [name for name in clouds if name not in CLOUDS]:
        raise ConfigError(f"--cloud {unknown[0]!r}: SkyPilot knows no such cloud; it knows {', '.join(sorted(CLOUDS))}")
    chosen = version or VERSION
    typer.echo(f"Installing SkyPilot {chosen} (about 0.5 GB, more with the packages of a cloud)")
    make(clouds, chosen)
    typer.echo("Set up your clouds' credentials as its documentation says, then check them and make the pool:")
    typer.echo(f"  {sky_command()} check")
    typer.echo("  crucible sky pool --infra CLOUD/REGION")


@app.command()
def pool(
    infra: Annotated[str | None, typer.Option(help="Cloud, region and zone, such as gcp/us-central1.")] = None,
    instance_type: Annotated[str | None, typer.Option(help="The cloud's name of the machine.")] = None,
    accelerators: Annotated[str | None, typer.Option(help="GPUs, such as L4:1.")] = None,
    spot: Annotated[bool | None, typer.Option("--spot/--on-demand", help="Spot machines.")] = None,
    env: Annotated[
        list[str] | None, typer.Option("--env", help="NAME=value for every machine, such as PREFECT_API_URL.")
    ] = None,
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="NAME=value of another setting, such as setup or api_server.")
    ] = None,
    name: Annotated[str, typer.Option(help="Name of the pool.")] = "skypilot",
) -> None:
    """Put the pool and its deployments on the Prefect server, or bring them up to date."""
    from crucible.cli.inputs import named_values
    from crucible.local.state import PROJECT
    from crucible.pools.common.offered import parse_settings
    from crucible.pools.skypilot.pool import PoolOptions
    from crucible.pools.skypilot.pool import register as register_pool

    given = {"infra": infra, "instance_type": instance_type, "accelerators": accelerators, "use_spot": spot}
    chosen = {key: value for key, value in given.items() if value is not None}
    others = parse_settings(named_values("--set", settings))
    asked = {"workdir": str(PROJECT), **chosen, **others}
    register_pool(PoolOptions(name=name, environment=named_values("--env", env), settings=asked))
    typer.echo(f"Pool {name} is ready; start its worker with:")
    typer.echo(f"  prefect worker start --pool {name} --type skypilot --name {name}-1")


@app.command()
def status(
    api_server: Annotated[
        str, typer.Option(help="Address of SkyPilot's API server; default: this machine's own.")
    ] = "",
) -> None:
    """What SkyPilot has access to, and the machines of Crucible's that it keeps now. Starts its API server."""
    import asyncio
    from datetime import UTC, datetime

    from crucible.formatting import duration
    from crucible.pools.skypilot.client import Sky
    from crucible.pools.skypilot.environment import python_of

    async def ask() -> None:
        sky = Sky(python_of(), api_server)
        try:
            facts, clusters = await sky.facts(), await sky.clusters()
        finally:
            await sky.close()
        clouds = ", ".join(facts["clouds"]) or "no cloud; set up credentials, then: sky check"
        typer.echo(f"SkyPilot {facts['version']} has access to {clouds}")
        ours = [cluster for cluster in clusters if cluster.name.startswith("crucible-")]
        for cluster in ours:
            age = duration(datetime.now(UTC).timestamp() - cluster.launched_at) if cluster.launched_at else "unknown"
            typer.echo(f"  {cluster.name}  {cluster.status}  {cluster.resources}  for {age}")
        typer.echo(f"{len(ours)} machines of Crucible's are kept; each costs money until it is down")

    asyncio.run(ask())
