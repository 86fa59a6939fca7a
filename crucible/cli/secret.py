"""`crucible secret set`: save a secret for scripts as a Prefect Secret block."""

from __future__ import annotations

from typing import Annotated

import typer

from crucible.cli.run import PANEL

app = typer.Typer(no_args_is_help=True, help="Secrets that scripts get as environment variables.")


def register(root: typer.Typer) -> None:
    root.add_typer(app, name="secret", rich_help_panel=PANEL)


@app.callback()
def _group() -> None:
    """Secrets that scripts get as environment variables."""


@app.command("set")
def set_(
    name: Annotated[str, typer.Argument(help="The variable's name, such as HF_TOKEN.")],
) -> None:
    """Save the value of a variable of this shell, or one that you type, as a Secret block on the Prefect server."""
    import os
    import sys

    from crucible.errors import ConfigError
    from crucible.local.access import connect_here
    from crucible.local.block_documents import save_secret
    from crucible.script_config import ScriptSettings, secret_block

    ScriptSettings.parse({"secrets": [name]})
    value = os.environ.get(name)
    if value is None:
        value = typer.prompt(name, hide_input=True, err=True) if sys.stdin.isatty() else sys.stdin.read().strip()
    if not value:
        raise ConfigError(f"{name} is empty; set it in this shell, or type it when you are asked")
    with connect_here() as api:
        save_secret(api, secret_block(name), value)
    typer.echo(f"saved the Secret block {secret_block(name)}; scripts get it with --secret {name}")
