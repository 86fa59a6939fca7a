"""`crucible estimate`, `prices` and `simulate`: where a job could run, what it would cost and how long it takes."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from crucible.errors import ConfigError


def register(app: typer.Typer) -> None:
    app.command("simulate")(simulate)


def simulate(
    traces: Annotated[Path, typer.Option(help="Folder with spot availability traces (JSON: gap_seconds, data).")],
    job_hours: Annotated[float, typer.Option(help="Length of the job when nothing interrupts it.")] = 24.0,
    on_demand_ratio: Annotated[float, typer.Option(help="On-demand price over spot price.")] = 3.0,
    changeover_hours: Annotated[float, typer.Option(help="Time to get a new machine working.")] = 0.1,
    deadline_ratios: Annotated[
        str, typer.Option(help="Deadlines as multiples of the job, with commas.")
    ] = "1.1,1.3,1.6",
    start_every_hours: Annotated[float, typer.Option(help="Distance between the start points in a trace.")] = 7.0,
    plot: Annotated[Path | None, typer.Option(help="Also draw the result to this .png, .svg or .pdf.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one row per trace, policy and deadline.")] = False,
) -> None:
    """Replay deadline policies over recorded spot availability and compare what they would have cost.

    Cost 1.0 is the whole job on demand. The policies see only the past; "omniscient" is the bound no policy can beat.
    """
    from crucible.routing.simulate import load_traces, summarise
    from crucible.routing.simulate import simulate as replay

    rows = replay(
        load_traces(traces),
        job_hours=job_hours,
        on_demand_ratio=on_demand_ratio,
        changeover_hours=changeover_hours,
        deadline_ratios=_numbers(deadline_ratios, "deadline_ratios"),
        start_every_hours=start_every_hours,
        progress=lambda message: None if as_json else typer.echo(message, err=True),
    )
    if plot is not None:
        from crucible.routing.simulation_plot import save_plot

        save_plot(summarise(rows), plot)
    if as_json:
        typer.echo(json.dumps([row.to_dict() for row in rows], indent=1))
        return

    from rich.console import Console
    from rich.table import Table

    table = Table(title=f"{len({row.trace for row in rows})} traces, {job_hours:g} h job (cost 1.0 = all on demand)")
    for name in ("deadline", "policy", "cost", "above the bound", "late runs"):
        table.add_column(name, justify="left" if name == "policy" else "right")
    last = None
    for line in summarise(rows):
        if last not in (None, line.deadline_ratio):
            table.add_section()
        last = line.deadline_ratio
        table.add_row(
            f"{line.deadline_ratio:g} x", line.policy, f"{line.cost:.3f}", f"{line.excess:.3f}", str(line.missed)
        )
    Console().print(table)


def _numbers(text: str, field: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{field} is {text!r}: give numbers separated by commas, such as 1.1,1.3,1.6") from None
    return list(dict.fromkeys(numbers))
