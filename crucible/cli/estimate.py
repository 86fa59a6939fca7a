"""`crucible estimate`, `prices` and `simulate`: where a job could run, its cost and its time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from crucible.errors import ConfigError
from crucible.formatting import print_table


def register(app: typer.Typer) -> None:
    app.command("estimate")(estimate)
    app.command("simulate")(simulate)
    prices = typer.Typer(help="What machines cost: the catalog, and today's prices.", no_args_is_help=True)
    prices.command("ls")(list_prices)
    prices.command("refresh")(refresh_prices)
    prices.command("import")(import_prices)
    app.add_typer(prices, name="prices")


def estimate(
    preset: Annotated[str | None, typer.Option(help="Shipped configuration, such as gpt2-124m.")] = None,
    config: Annotated[Path | None, typer.Option(help="YAML or JSON file of settings instead of a preset.")] = None,
    changes: Annotated[list[str] | None, typer.Option("--set", help="key=value; may be repeated.")] = None,
    tokens: Annotated[str | None, typer.Option(help="Train on this many tokens: 300M, 1B. Default: max_iters.")] = None,
    vocab_size: Annotated[int | None, typer.Option(help="Size of the vocabulary, without --dataset.")] = None,
    dataset: Annotated[Path | None, typer.Option(help="A prepared dataset folder.")] = None,
    script: Annotated[Path | None, typer.Option(help="Your own training script instead of a configuration.")] = None,
    hours: Annotated[float | None, typer.Option(help="For --script: how long it takes on --measured-on.")] = None,
    measured_on: Annotated[str | None, typer.Option(help="For --script: a machine type of the catalog.")] = None,
    gpu_memory_gib: Annotated[float | None, typer.Option(help="For --script: memory it needs per GPU.")] = None,
    optimize_for: Annotated[str, typer.Option(help="cost, time or balanced.")] = "balanced",
    value_of_hour_usd: Annotated[float, typer.Option(help="For balanced: what saving an hour is worth to you.")] = 1.0,
    pools: Annotated[str | None, typer.Option(help="Only these work pools, with commas.")] = None,
    dedicated: Annotated[bool, typer.Option("--dedicated", help="No host shared with other customers.")] = False,
    uninterrupted: Annotated[bool, typer.Option("--uninterrupted", help="No machine that can be interrupted.")] = False,
    max_cost_usd: Annotated[float | None, typer.Option(help="The most that the job may cost.")] = None,
    longest_hours: Annotated[float, typer.Option(help="Leave out what would take longer.")] = 336.0,
    finish_by: Annotated[str | None, typer.Option(help="Deadline: hours from now (12h) or 2026-05-07T18:00.")] = None,
    offers: Annotated[Path | None, typer.Option(help="CSV file with your own offers.")] = None,
    store: Annotated[str | None, typer.Option(help="Store that remembers past runs. Default: the local one.")] = None,
    probe: Annotated[bool, typer.Option("--probe", help="Measure the speed with a few steps on this machine.")] = False,
    accuracy: Annotated[bool, typer.Option("--accuracy", help="Show how good past estimates were.")] = False,
    everything: Annotated[bool, typer.Option("--all", help="Show all offers and why the others do not fit.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Show where a job could run, what it would cost and how long it would take. Needs no account.

    A range goes from low to high around the likely value; the real value should lie within it 8 times out of 10.
    """
    from crucible.estimate.history import estimates
    from crucible.estimate.request import EstimateRequest, run_estimate
    from crucible.reports.estimate_tables import print_accuracy, print_result
    from crucible.store import existing_store

    known = existing_store(store)
    if accuracy:
        print_accuracy(estimates(known), as_json)
        return
    request = EstimateRequest.parse(
        {
            "preset": preset,
            "config": config,
            "changes": tuple(changes or ()),
            "tokens": tokens,
            "vocab_size": vocab_size,
            "dataset": dataset,
            "script": script,
            "hours": hours,
            "measured_on": measured_on,
            "gpu_memory_gib": gpu_memory_gib,
            "optimize_for": optimize_for,
            "value_of_hour_usd": value_of_hour_usd,
            "pools": tuple(pool.strip() for pool in pools.split(",")) if pools else None,
            "dedicated": dedicated,
            "uninterrupted": uninterrupted,
            "max_cost_usd": max_cost_usd,
            "longest_hours": longest_hours,
            "finish_by": finish_by,
            "offers": offers,
            "store": store,
            "probe": probe,
        }
    )
    print_result(run_estimate(request, lambda message: typer.echo(message, err=True)), everything, as_json)


def list_prices(
    offers: Annotated[Path | None, typer.Option(help="CSV file with your own offers.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """List every offer with its price, and the source and date of the price."""
    from datetime import UTC, datetime

    from crucible.catalog.offers import load_catalog, stale_warning
    from crucible.reports.estimate_tables import print_offers

    known = load_catalog(offers)
    print_offers(known, as_json)
    if (warning := stale_warning(known, datetime.now(UTC).date())) is not None:
        typer.echo(f"note: {warning}", err=True)


def refresh_prices(
    region: Annotated[str, typer.Option(help="AWS region whose prices count.")] = "us-east-1",
) -> None:
    """Update prices from AWS and Modal, if you have credentials for them."""
    from datetime import UTC, datetime

    from crucible.catalog.offers import add_prices, load_catalog
    from crucible.catalog.prices import refresh

    refreshed = refresh(load_catalog(), region, datetime.now(UTC))
    for message in refreshed.messages:
        typer.echo(message, err=True)
    if not refreshed.offers:
        raise ConfigError("no price could be refreshed; set up AWS or Modal credentials, or write your own offers file")
    typer.echo(f"{len(refreshed.offers)} prices written to {add_prices(refreshed.offers)}")


def import_prices(
    cloud: Annotated[
        list[str] | None, typer.Option("--cloud", help="Cloud, such as gcp; repeat it. Default: all that are there.")
    ] = None,
    region: Annotated[
        list[str] | None,
        typer.Option("--region", help="Only this region; repeat it. Default: each machine's cheapest."),
    ] = None,
    folder: Annotated[Path | None, typer.Option(help="SkyPilot's catalogs; default: where it keeps them.")] = None,
) -> None:
    """Take machines and prices from SkyPilot's catalogs on this machine, for the pool skypilot."""
    from crucible.catalog.offers import add_prices, load_catalog
    from crucible.catalog.skypilot import POOL, catalog_folder, clouds_there, read_offers

    where = folder or catalog_folder()
    there = clouds_there(where)
    found = read_offers(where, cloud or there, load_catalog(), region or ())
    for name, offers in found.items():
        dated = f", of {offers[0].as_of}" if offers else ""
        typer.echo(f"{name}: {len(offers)} offers with GPUs that estimates know{dated}", err=True)
    fresh = [offer for offers in found.values() for offer in offers]
    if not fresh:
        raise ConfigError("no offer could be taken; check --cloud and --region against SkyPilot's catalogs")
    file = add_prices(fresh, instead_of=[f"{POOL}/{name}/" for name in found])
    typer.echo(f"{len(fresh)} offers written to {file}")


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
    from crucible.placement.simulate import load_traces, summarise
    from crucible.placement.simulate import simulate as replay

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
        from crucible.reports.simulation_picture import save_plot

        save_plot(summarise(rows), plot)
    if as_json:
        typer.echo(json.dumps([row.to_dict() for row in rows], indent=1))
        return

    table = [
        [f"{line.deadline_ratio:g} x", line.policy, f"{line.cost:.3f}", f"{line.excess:.3f}", str(line.missed)]
        for line in summarise(rows)
    ]
    title = f"{len({row.trace for row in rows})} traces, {job_hours:g} h job (cost 1.0 = all on demand)"
    print_table(
        ["deadline", "policy", "cost", "above the bound", "late runs"], table, numbers=(0, 2, 3, 4), title=title
    )


def _numbers(text: str, field: str) -> list[float]:
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ConfigError(f"{field} is {text!r}: give numbers separated by commas, such as 1.1,1.3,1.6") from None
    return list(dict.fromkeys(numbers))
