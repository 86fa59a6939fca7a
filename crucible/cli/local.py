"""`crucible up | down | env | doctor`: the local set-up."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

PANEL = "Local set-up"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL)(up)
    app.command(rich_help_panel=PANEL)(down)
    app.command(rich_help_panel=PANEL)(env)


def up(
    project: Annotated[
        Path | None, typer.Option(help="Deploy this folder's prefect.yaml instead of Crucible's own.", file_okay=False)
    ] = None,
) -> None:
    """Start the Prefect server, a worker and the watchdog here, deploy, and point `prefect` at them."""
    from crucible.local import profile, services
    from crucible.local.state import PROJECT, Home
    from crucible.local.status import StatusLines
    from crucible.local.up import up as bring_up

    home = Home.current()
    with StatusLines() as lines:
        state = bring_up(home, project.absolute() if project else PROJECT, lines.report)
    assert state.api_url is not None
    typer.echo(f"UI       {services.ui_url(state.api_url)}")
    typer.echo(f"Profile  {profile.NAME} is selected, so `prefect …` reaches this server; `crucible down` goes back,")
    typer.echo(f"         or at once: prefect profile use {state.previous_profile or profile.PREFECT_DEFAULT}")
    for name in profile.overridden_by(services.client_settings(state.api_url)):
        typer.echo(f"note: {name} is set in this shell and wins over the profile; run: unset {name}", err=True)


def down() -> None:
    """Stop all that `crucible up` started and select the earlier Prefect profile again."""
    from crucible.local.state import Home
    from crucible.local.status import StatusLines
    from crucible.local.up import down as bring_down

    with StatusLines() as lines:
        restored = bring_down(Home.current(), lines.report)
    typer.echo(f"Everything is stopped{f'; Prefect profile {restored} is selected again' if restored else ''}.")


def env() -> None:
    """Print the settings of the profile as export lines: eval "$(crucible env)"."""
    import shlex

    from crucible.errors import ServiceError
    from crucible.local import services
    from crucible.local.state import Home, State

    home = Home.current()
    state = State.load(home)
    if state.api_url is None or not state.is_running("server"):
        raise ServiceError("the local set-up is not running; start it with: crucible up")
    for name, value in {"CRUCIBLE_HOME": str(home.root), **services.client_settings(state.api_url)}.items():
        typer.echo(f"export {name}={shlex.quote(value)}")
