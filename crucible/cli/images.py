"""`crucible images build | push | ls`: the images that every pool runs."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from crucible.pools.docker.images import Recipe

app = typer.Typer(no_args_is_help=True, help="The images that every pool runs: build, push, list.")

Gpu = Annotated[bool, typer.Option("--gpu/--cpu", help="For NVIDIA GPUs, or for CPUs (smaller).")]
Base = Annotated[
    str | None,
    typer.Option(
        help="Base image. Default: slim Python, or this machine's own files where no registry answers; 'host': those, "
        "with the packages from the index.",
        show_default=False,
    ),
]
Dockerfile = Annotated[
    Path | None, typer.Option(help="Build your own Dockerfile instead, with the project folder.", show_default=False)
]
Project = Annotated[Path | None, typer.Option(help="The folder to build from.", show_default="Crucible's own")]
BuildArg = Annotated[list[str] | None, typer.Option("--build-arg", help="NAME=value for the Dockerfile.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON.")]


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="images")


@app.command()
def build(
    gpu: Gpu = False,
    base: Base = None,
    dockerfile: Dockerfile = None,
    project: Project = None,
    build_arg: BuildArg = None,
    again: Annotated[bool, typer.Option("--again", help="Build even if this engine has the image.")] = False,
    as_json: Json = False,
) -> None:
    """Build the image of the tree as it is. An unchanged tree is found by its digest and not built again."""
    import json
    import time

    from crucible.pools.docker import images

    recipe = _recipe(gpu, base, dockerfile, project, build_arg)
    began = time.monotonic()
    found = images.find(recipe)
    reference = images.build(recipe, _say, again=again)
    built = again or found is None
    if as_json:
        typer.echo(json.dumps({"image": reference, "built": built, "seconds": round(time.monotonic() - began, 1)}))
    elif built:
        typer.echo(f"{reference}  built in {time.monotonic() - began:.0f} s")
    else:
        typer.echo(f"{reference}  unchanged")


@app.command()
def push(
    repository: Annotated[
        str | None,
        typer.Argument(help="Repository to push to; default: the one of the AWS stack.", show_default=False),
    ] = None,
    gpu: Gpu = True,
    base: Base = None,
    dockerfile: Dockerfile = None,
    project: Project = None,
    build_arg: BuildArg = None,
    stack: Annotated[str, typer.Option(help="The AWS stack whose repository it is.")] = "crucible",
    region: Annotated[str | None, typer.Option(help="AWS region.", show_default=False)] = None,
    profile: Annotated[str | None, typer.Option(help="AWS profile.", show_default=False)] = None,
) -> None:
    """Build the image unless it is there, and push it under its digest. Prints the reference that pools take."""
    from crucible.pools.docker import images, registry

    recipe = _recipe(gpu, base, dockerfile, project, build_arg)
    if repository is None:
        repository = registry.stack_repository(stack, region, profile)
    login = registry.ecr_login(repository, profile) if registry.is_ecr(repository) else None
    images.build(recipe, _say)
    typer.echo(registry.push(recipe, repository, login, _say))


@app.command()
def ls(as_json: Json = False) -> None:
    """The images of Crucible's that this engine has, newest first."""
    import json

    from crucible.pools.docker import images

    rows = images.known()
    if as_json:
        typer.echo(json.dumps(rows))
        return
    for row in rows:
        typer.echo(f"{row['image']:36}{row['megabytes']:8} MB  {row['created']}  {row['revision']}")


def _recipe(
    gpu: bool, base: str | None, dockerfile: Path | None, project: Path | None, build_arg: list[str] | None
) -> Recipe:
    from crucible.cli.inputs import named_values
    from crucible.pools.docker.images import PROJECT, Recipe

    arguments = named_values("--build-arg", build_arg)
    folder = project.absolute() if project else PROJECT
    return Recipe("gpu" if gpu else "cpu", folder, dockerfile, base, arguments)


def _say(line: str) -> None:
    typer.echo(line, err=True)
