"""`crucible init`: write a crucible.yaml for the folder."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from crucible.cli.run import PANEL


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL)(init)


def init(
    folder: Annotated[Path, typer.Option(help="The folder of the script.", file_okay=False, exists=True)] = Path(),
    force: Annotated[bool, typer.Option("--force", help="Replace a crucible.yaml that is there.")] = False,
    schema: Annotated[bool, typer.Option("--schema", help="Print the JSON schema of crucible.yaml instead.")] = False,
) -> None:
    """Look at the folder and write a commented crucible.yaml, so that `crucible run` needs no options."""
    import json

    from crucible.code.suggest import render, suggest
    from crucible.errors import ConfigError
    from crucible.run_config import FILE, RunConfig

    if schema:
        typer.echo(json.dumps(RunConfig.json_schema(), indent=2))
        return
    path = folder / FILE
    if path.exists() and not force:
        raise ConfigError(f"{path} exists; change it, or replace it with crucible init --force")
    found = suggest(folder)
    try:
        path.write_text(render(found), encoding="utf-8")
    except OSError as error:
        raise ConfigError(f"{path} cannot be written: {error.strerror}") from error
    typer.echo(f"wrote {path}")
    for name, reason in found.reasons.items():
        typer.echo(f"  {name:<12}{reason}")
    if "command" not in found.settings:
        typer.echo("  no training script found; write the command into the file")
    typer.echo("next: crucible run --dry-run")
