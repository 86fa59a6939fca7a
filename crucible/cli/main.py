"""Entry point of the `crucible` command."""

from __future__ import annotations

import copy
import functools
import importlib
import os
import pkgutil
import sys
from typing import Annotated

import typer
from typer.models import CommandInfo, TyperInfo

import crucible.cli
from crucible import __version__
from crucible.cli.inputs import check_all
from crucible.errors import CrucibleError
from crucible.extras import how_to_install
from crucible.formatting import printable
from crucible.loopback import bypass_proxies

PANELS = {
    "Start": ("quickstart", "up", "down", "ui", "env", "doctor"),
    "Train": ("run", "tune", "init", "estimate", "data", "secret"),
    "Watch": ("overview", "jobs", "logs", "sweeps", "compare", "tensorboard", "track"),
    "Models": ("checkpoints", "report", "share", "serve"),
    "Cost and maintenance": ("cost", "prices", "notify", "prune", "cleanup", "simulate"),
    "Rehearse": ("drill", "rehearse"),
    "Machines": ("docker", "aws", "modal", "slurm", "kubernetes", "sky", "images"),
}
"""How `crucible --help` groups the commands, and in which order."""


def print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"crucible {__version__}")
        raise typer.Exit


def options(
    version: Annotated[
        bool, typer.Option("--version", callback=print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Training runs that survive the cloud: preprocess, train, evaluate and tune with Prefect."""


@functools.cache
def build_app() -> typer.Typer:
    """Return the app with the commands of every module of this package registered."""
    app = typer.Typer(
        name="crucible",
        callback=options,
        no_args_is_help=True,
        add_completion=False,
        pretty_exceptions_enable=False,
        context_settings={"help_option_names": ["-h", "--help"]},
    )
    for module in pkgutil.iter_modules(crucible.cli.__path__):
        if module.name != "main":
            register = getattr(importlib.import_module(f"crucible.cli.{module.name}"), "register", None)
            if register is not None:  # the others are what commands share
                register(app)
    _arrange(app)
    check_all(app)
    return app


def _arrange(app: typer.Typer) -> None:
    """Put the commands into the panels of the help, in the order of `PANELS`; one that is not there keeps its own."""
    panels = {name: panel for panel, names in PANELS.items() for name in names}
    order = list(panels)
    every: list[CommandInfo | TyperInfo] = [*app.registered_commands, *app.registered_groups]
    for info in every:
        info.rich_help_panel = panels.get(_name(info), info.rich_help_panel)
    for registered in (app.registered_commands, app.registered_groups):
        registered.sort(key=lambda info: order.index(_name(info)) if _name(info) in panels else len(order))


def _name(info: CommandInfo | TyperInfo) -> str:
    return str(info.name or getattr(info.callback, "__name__", ""))


def _with_only(app: typer.Typer, name: str) -> typer.Typer:
    """`app` with the command or group of that name alone, if there is one: Typer builds all of an app at each start."""
    only = copy.copy(app)
    only.registered_commands = [info for info in app.registered_commands if _name(info) == name]
    only.registered_groups = [info for info in app.registered_groups if _name(info) == name]
    return only if only.registered_commands or only.registered_groups else app


def main() -> None:
    """Run the command line; an expected error becomes one line on stderr and exit code 1."""
    bypass_proxies(os.environ)
    try:
        _with_only(build_app(), (sys.argv[1:] or [""])[0])()
    except CrucibleError as error:
        typer.echo(f"error: {printable(str(error))}", err=True)
        sys.exit(1)
    except ModuleNotFoundError as error:
        rehearsed = {"drill", "rehearse"} & set(sys.argv[1:2])
        fix = how_to_install(error, "rehearsal" if rehearsed else None)
        if fix is None:
            raise
        typer.echo(f"error: {fix}", err=True)
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)


if __name__ == "__main__":
    main()
