"""`crucible up | down | env | ui | doctor`: the local set-up."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from crucible.doctor.checks import Check
    from crucible.local.state import Home

PANEL = "Local set-up"


def register(app: typer.Typer) -> None:
    app.command(rich_help_panel=PANEL)(up)
    app.command(rich_help_panel=PANEL)(down)
    app.command(rich_help_panel=PANEL)(env)
    app.command(rich_help_panel=PANEL)(ui)
    app.command(rich_help_panel=PANEL)(doctor)


def up(
    project: Annotated[
        Path | None, typer.Option(help="Deploy this folder's prefect.yaml instead of Crucible's own.", file_okay=False)
    ] = None,
    pool: Annotated[
        str | None, typer.Option(help="Start this pool and its worker too: docker-gpu.", show_default=False)
    ] = None,
    gpus: Annotated[
        str, typer.Option(help="For docker-gpu: all, a number, or device=0,2; 0: train on the CPU.")
    ] = "all",
    memory: Annotated[
        str | None, typer.Option(help="For docker-gpu: memory limit of a container, like 24g.", show_default=False)
    ] = None,
    image: Annotated[
        str | None, typer.Option(help="For docker-gpu: image to run instead of this tree's own.", show_default=False)
    ] = None,
) -> None:
    """Start the Prefect server, a worker and the watchdog on this machine, deploy, and point `prefect` at them."""
    from crucible.errors import ConfigError
    from crucible.local import profile, services
    from crucible.local.state import PROJECT, Home
    from crucible.local.status import StatusLines
    from crucible.local.up import up as bring_up

    if pool not in (None, "docker-gpu"):
        raise ConfigError(f"--pool {pool!r}: only docker-gpu can be started here")
    home = Home.current()
    with StatusLines() as lines:
        state = bring_up(home, project.absolute() if project else PROJECT, lines.report)
        if pool is not None:
            from crucible.local.docker import bring_up as bring_up_docker

            bring_up_docker(home, lines.report, gpus=gpus, memory=memory, image=image)
    assert state.api_url is not None
    typer.echo(f"UI       {page_link(home, services.ui_url(state.api_url))}")
    if state.database:
        typer.echo(f"Database {state.database}")
    typer.echo(f"Profile  {profile.NAME} is selected, so `prefect …` reaches this server; `crucible down` goes back,")
    typer.echo(f"         or at once: prefect profile use {state.previous_profile or profile.PREFECT_DEFAULT}")
    for name in profile.overridden_by(services.client_settings(home, state.api_url)):
        typer.echo(f"note: {name} is set in this shell and wins over the profile; run: unset {name}", err=True)


def down() -> None:
    """Stop all that `crucible up` started and select the earlier Prefect profile again."""
    from crucible.local import services
    from crucible.local.state import Home
    from crucible.local.status import StatusLines
    from crucible.local.up import Report
    from crucible.local.up import down as bring_down

    def stop_containers(home: Home, report: Report) -> None:
        from crucible.local.docker import stop_runs  # needs the docker extra, which is there where this service runs

        stop_runs(home, report)

    with StatusLines() as lines:
        restored = bring_down(Home.current(), lines.report, {services.DOCKER_WORKER: stop_containers})
    typer.echo(f"Everything is stopped{f'; Prefect profile {restored} is selected again' if restored else ''}.")


def env() -> None:
    """Print the settings of the profile as export lines: eval "$(crucible env)"."""
    import shlex

    from crucible.local import services
    from crucible.local.state import Home

    home = Home.current()
    api_url = _running_api_url(home)
    for name, value in {"CRUCIBLE_HOME": str(home.root), **services.client_settings(home, api_url)}.items():
        typer.echo(f"export {name}={shlex.quote(value)}")


def ui() -> None:
    """Open the Prefect UI in the browser, logged in; where there is no browser, print the link."""
    import webbrowser

    from crucible.local import access, services
    from crucible.local.state import Home

    home = Home.current()
    link = access.login_link(home, services.ui_url(_running_api_url(home)))
    if not webbrowser.open(link):
        typer.echo(link)


def page_link(home: Home, page: str) -> str:
    """The page as a link that logs the browser in; in a log or a pipe the plain address, without the password."""
    import sys

    from crucible.local import access

    return access.login_link(home, page) if sys.stdout.isatty() else page


def _running_api_url(home: Home) -> str:
    from crucible.errors import ServiceError
    from crucible.local.state import State

    state = State.load(home)
    if state.api_url is None or not state.is_running("server"):
        raise ServiceError("the local set-up is not running; start it with: crucible up")
    return state.api_url


def doctor(as_json: Annotated[bool, typer.Option("--json", help="Print the rows as JSON.")] = False) -> None:
    """Check this machine and every pool, and say how to fix what is not ready. Fails if the local pool is not ready."""
    from crucible.doctor import checks, pool_checks

    machine, pools = checks.machine(), pool_checks.pools()
    rows = checks.run_all([*machine, *pools])
    machine_rows, pool_rows = rows[: len(machine)], rows[len(machine) :]
    local = pool_checks.local(machine_rows)
    if as_json:
        import json

        typer.echo(json.dumps([vars(row) for row in [*machine_rows, local, *pool_rows]], indent=2))
    else:
        _print_rows([*machine_rows, local, *pool_rows])
    if not local.ready:
        raise typer.Exit(1)


def _print_rows(rows: list[Check]) -> None:
    import textwrap

    from rich.console import Console
    from rich.text import Text

    console, margin = Console(soft_wrap=True), " " * 26  # a wrapped command line cannot be copied
    for row in rows:
        status = Text("ready    ", "green") if row.ready else Text("not ready", "red")
        found = row.found
        if console.is_terminal:
            width = max(console.width - len(margin), 30)
            lines = textwrap.wrap(found, width, break_long_words=False, break_on_hyphens=False)
            found = f"\n{margin}".join(lines)
        console.print(status, f"{row.name:<15}{found}", sep="  ", markup=False, highlight=False)
        if row.fix:
            console.print(Text(f"{margin}→ {row.fix}", "yellow"))
