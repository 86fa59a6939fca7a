"""Estimates and prices as tables in the terminal, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from rich.console import Console
from rich.table import Table

from crucible.catalog.offers import Offer
from crucible.estimate.estimate import Range
from crucible.estimate.history import EstimateRecord, accuracy
from crucible.estimate.needs import Needs
from crucible.estimate.ranking import Ranked, in_words, money
from crucible.estimate.request import Answer, describe

_SHOWN = 15
_EXPLAINED = 3
_PIPE_WIDTH = 240
_SHORT_SOURCES = {"history of other configurations": "other runs"}


def print_answer(found: Answer, everything: bool, as_json: bool) -> None:
    """The ranked offers; with `everything`, all of them and the rejected ones with their reason."""
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return
    console = _console()
    console.print(_summary(found), highlight=False)
    ranked = found.recommendation.ranked
    shown = ranked if everything else ranked[:_SHOWN]
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("#", "offer", "GPU", "time", "cost", "speed from"):
        table.add_column(name, justify="right" if name == "#" else "left", no_wrap=True)
    for place, entry in enumerate(shown, 1):
        found_here, offer = entry.estimate, entry.estimate.offer
        gpu = f"{offer.gpus} x {offer.gpu}" if offer.gpus > 1 else offer.gpu or "-"
        source = _SHORT_SOURCES.get(found_here.speed.source, found_here.speed.source)
        table.add_row(str(place), offer.key, gpu, _hours(found_here.hours), _usd(found_here.usd), source)
    console.print(table)
    if len(shown) < len(ranked):
        console.print(f"… and {len(ranked) - len(shown)} more with --all")
    for entry in ranked if everything else ranked[:_EXPLAINED]:
        console.print(f"{entry.estimate.offer.key}: {_remarks(entry)}", highlight=False)
    if everything:
        for rejected in found.recommendation.rejected:
            console.print(f"not {rejected.offer.key}: {rejected.reason}", highlight=False)
    else:
        console.print(f"{len(found.recommendation.rejected)} offers do not fit; --all says why", highlight=False)
    for sentence in (*found.recommendation.advice, *found.warnings):
        console.print(f"note: {sentence}", highlight=False)


def print_accuracy(records: list[EstimateRecord], as_json: bool) -> None:
    """Every past estimate beside the truth, and how good they were together."""
    together = accuracy(records)
    if as_json:
        jobs = [record.model_dump(mode="json") | {"hours_error": record.hours_error} for record in records]
        print(json.dumps({**together, "estimates": jobs}, indent=1))
        return
    console = _console()
    if not records:
        console.print("no job with an estimate has ended yet")
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("job", "offer", "estimated", "took", "error", "estimated cost", "cost", "speed from"):
        table.add_column(name)
    for record in records:
        plan = record.planned
        bounds = Range(plan.low_hours, plan.hours, plan.high_hours)
        cells = [record.job_id, plan.offer, _hours(bounds), in_words(record.hours), f"{record.hours_error:+.0%}"]
        table.add_row(*cells, money(plan.usd), money(record.usd), plan.speed_source)
    console.print(table)
    console.print(
        f"{together['jobs']} jobs: median error {together['median_error']:.0%}, worst {together['worst_error']:.0%}, "
        f"{together['within_bounds']:.0%} within their bounds"
    )


def print_offers(offers: Sequence[Offer], as_json: bool) -> None:
    """The catalog."""
    if as_json:
        print(json.dumps([asdict(offer) for offer in offers], indent=1, default=str))
        return
    table = Table(box=None, header_style="bold", pad_edge=False)
    for name in ("offer", "GPU", "GiB each", "vCPU", "GiB", "USD/h", "price of", "source"):
        table.add_column(name, no_wrap=True)
    sources = list(dict.fromkeys(offer.source for offer in offers))
    for offer in offers:
        table.add_row(
            offer.key,
            f"{offer.gpus} x {offer.gpu}" if offer.gpus > 1 else offer.gpu or "-",
            f"{offer.gpu_memory_gib:g}" if offer.gpu_memory_gib else "",
            str(offer.vcpus or ""),
            f"{offer.memory_gib:.0f}" if offer.memory_gib else "",
            f"{offer.usd_per_hour:.4f}" + (" ?" if "usd_per_hour" in offer.assumed else ""),
            str(offer.as_of or ""),
            str(sources.index(offer.source) + 1),
        )
    console = _console()
    console.print(table)
    console.print("? marks an assumed price")
    for number, source in enumerate(sources, 1):
        console.print(f"source {number}: {source}", markup=False, highlight=False)


def _console() -> Console:
    """Whole lines for a pipe, whatever it thinks its width is."""
    console = Console()
    if not console.is_terminal:
        console.width = _PIPE_WIDTH
    return console


def _summary(found: Answer) -> str:
    needs = found.needs
    inferred = "".join(f"\n  {sentence}" for sentence in needs.inferred)
    if not isinstance(needs, Needs):
        return f"script: {describe(needs)['hours']:g} h on {needs.measured_on.instance}{inferred}"
    return (
        f"{needs.parameters:,} parameters, {needs.tokens:,} tokens in {needs.steps:,} steps, "
        f"{needs.flops:.2g} FLOP, checkpoints of {needs.checkpoint_bytes / 1e6:,.1f} MB{inferred}"
    )


def _remarks(entry: Ranked) -> str:
    for_it, against = ", ".join(entry.pros), ", ".join(entry.cons)
    return "; but ".join(part for part in (for_it, against) if part) or "nothing speaks for or against it"


def _hours(hours: Range) -> str:
    return f"{in_words(hours.likely)} ({in_words(hours.low)}–{in_words(hours.high)})"


def _usd(usd: Range) -> str:
    return "free" if usd.high == 0 else f"{money(usd.likely)} ({money(usd.low)}–{money(usd.high)})"
