"""`crucible overview`: all jobs and sweeps at a glance, and what needs a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from crucible.cli.records import JsonOption, StoreOption, open_store, print_json
from crucible.formatting import UNKNOWN, counted, duration, money

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType
    from rich.table import Table

    from crucible.reports.overview import JobLine, Overview, SweepLine

WATCH_SECONDS = 5.0


def register(app: typer.Typer) -> None:
    app.command("overview")(overview)


def overview(
    watch: Annotated[bool, typer.Option("--watch", "-w", help="Show it again and again, until Ctrl-C.")] = False,
    store: StoreOption = None,
    as_json: JsonOption = False,
) -> None:
    """Show all jobs and sweeps: state, progress, loss, cost, time left, and what needs you.

    It reads the store alone and needs no Prefect server. The Prefect UI has the same as the artifact `overview`.
    """
    import time

    from crucible.formatting import console
    from crucible.reports.overview import OverviewReader

    reader = OverviewReader(open_store(store))
    if as_json:
        print_json(reader.read().as_json())
        return
    screen = console()
    if not watch:
        screen.print(_shown(reader.read()))
        return
    from rich.live import Live

    with Live(console=screen, auto_refresh=False, screen=screen.is_terminal) as live:
        while True:
            live.update(_shown(reader.read()), refresh=True)
            time.sleep(WATCH_SECONDS)


def _shown(found: Overview) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from crucible.reports.overview_page import headline

    parts: list[Any] = [Text(headline(found).replace("**", ""), style="bold")]
    parts += [Text(f"! {name}: {what.replace('`', '')}", style="yellow") for name, what in found.needing]
    if found.jobs:
        parts += [Text(), _jobs(found.jobs)]
    if found.sweeps:
        parts += [Text(), _sweeps(found.sweeps)]
    parts += [Text(f"warning: {what}", style="red") for what in found.damaged]
    if found.older:
        parts.append(Text(f"\n{counted(found.older, 'more job')} ended before: crucible jobs ls", style="dim"))
    return Group(*parts)


def _jobs(lines: Sequence[JobLine]) -> Table:
    table = _table(["job", "state", "progress", "loss", "", "cost", "left", "pool", "why"], right=(3, 5, 6))
    for line in lines:
        table.add_row(*_cells(line))
    return table


def _cells(line: JobLine) -> list[str]:
    from crucible.reports.curve import bar, sparkline

    done = f"{bar(line.share)} {line.share:.0%}" if line.share is not None else f"{line.step:,} steps"
    money_left = f", {money(line.cost_left_usd)}" if line.cost_left_usd else ""
    left = f"{duration(line.seconds_left)}{money_left}" if line.running and line.seconds_left is not None else ""
    return [
        line.job,
        line.activity,
        done,
        UNKNOWN if line.loss is None else f"{line.loss:.4f}",
        sparkline(line.curve),
        money(line.cost_usd) + (f" of {money(line.max_cost_usd)}" if line.max_cost_usd is not None else ""),
        left,
        f"{line.pool} {line.instance}".strip() or UNKNOWN,
        line.why,
    ]


def _sweeps(lines: Sequence[SweepLine]) -> Table:
    table = _table(["sweep", "state", "trials", "best", "cost", "pool", "why"], right=(3, 4))
    for line in lines:
        table.add_row(*_sweep_cells(line))
    return table


def _sweep_cells(line: SweepLine) -> list[str]:
    return [
        line.sweep,
        line.state or "not started",
        f"{line.done} of {line.max_trials or line.trials}" + (f", {line.failed} failed" if line.failed else ""),
        UNKNOWN if line.best is None else f"{line.best:.4f}",
        money(line.cost_usd),
        line.pool,
        line.why,
    ]


def _table(headings: list[str], right: tuple[int, ...]) -> Table:
    from rich.table import Table

    table = Table(box=None, header_style="bold", pad_edge=False)
    for index, heading in enumerate(headings):
        table.add_column(heading, justify="right" if index in right else "left", overflow="fold")
    return table
