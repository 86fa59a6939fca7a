"""`crucible overview`: all jobs and sweeps at a glance, and what needs a person."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated, Any

import typer

from crucible.cli.records import JsonOption, StoreOption, open_store, print_json
from crucible.formatting import UNKNOWN, counted, duration, money

if TYPE_CHECKING:
    from collections.abc import Sequence

    from rich.console import RenderableType

    from crucible.reports.overview import JobLine, Overview, SweepLine

WATCH_SECONDS = 5.0
CURVE = ""
"""The heading of the small curves."""
NUMBERS = ("loss", "best", "cost", "left")
"""Headings of columns that are right-aligned."""


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
        screen.print(_shown(reader.read(), screen.width))
        return
    from rich.console import Group
    from rich.live import Live
    from rich.text import Text

    from crucible.errors import StoreUnavailable

    found = reader.read()
    with Live(console=screen, auto_refresh=False, screen=screen.is_terminal) as live:
        live.update(_shown(found, screen.width), refresh=True)
        while True:
            time.sleep(WATCH_SECONDS)
            try:
                found = reader.read()
                live.update(_shown(found, screen.width), refresh=True)
            except StoreUnavailable as error:  # the next look may succeed
                live.update(Group(_shown(found, screen.width), Text(f"warning: {error}", style="red")), refresh=True)


def _shown(found: Overview, width: int) -> RenderableType:
    from rich.console import Group
    from rich.text import Text

    from crucible.reports.overview_page import headline

    parts: list[Any] = [Text(headline(found).replace("**", ""), style="bold")]
    parts += [Text(f"! {name}: {what.replace('`', '')}", style="yellow") for name, what in found.needing]
    if found.jobs:
        parts += [Text(), *_jobs(found.jobs, width)]
    if found.sweeps:
        parts += [Text(), *_sweeps(found.sweeps, width)]
    parts += [Text(f"warning: {what}", style="red") for what in found.damaged]
    if found.older:
        parts.append(Text(f"\n{counted(found.older, 'more job')} ended before: crucible jobs ls", style="dim"))
    return Group(*parts)


def _jobs(lines: Sequence[JobLine], width: int) -> list[Any]:
    headings = ["job", "state", "progress", "loss", CURVE, "cost", "left", "pool"]
    return _table(headings, [_cells(line) for line in lines], [line.why for line in lines], width)


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
    ]


def _sweeps(lines: Sequence[SweepLine], width: int) -> list[Any]:
    headings = ["sweep", "state", "trials", "best", "cost", "pool"]
    return _table(headings, [_sweep_cells(line) for line in lines], [line.why for line in lines], width)


def _sweep_cells(line: SweepLine) -> list[str]:
    return [
        line.sweep,
        line.state or "not started",
        f"{line.done} of {line.max_trials or line.trials}" + (f", {line.failed} failed" if line.failed else ""),
        UNKNOWN if line.best is None else f"{line.best:.4f}",
        money(line.cost_usd),
        line.pool,
    ]


def _table(headings: list[str], rows: list[list[str]], whys: list[str], width: int) -> list[Any]:
    """The rows with why they are in that state: in the last column where it fits on one line, else below the table.

    A terminal too narrow for the rows alone gets no curves. What is completed needs no reason below.
    """
    from rich.text import Text

    from crucible.formatting import fits, terminal_table

    with_why = [[*row, why] for row, why in zip(rows, whys, strict=True)]
    if fits([*headings, "why"], with_why, width):
        headings, rows, below = [*headings, "why"], with_why, []
    else:
        named = zip(rows, whys, strict=True)
        below = [Text(f"{row[0]}: {why}", style="dim") for row, why in named if why and row[1] != "completed"]
    if CURVE in headings and not fits(headings, rows, width):
        curves = headings.index(CURVE)
        headings, *rows = ([*row[:curves], *row[curves + 1 :]] for row in (headings, *rows))
    numbers = [place for place, heading in enumerate(headings) if heading in NUMBERS]
    return [terminal_table(headings, rows, width, numbers), *below]
