"""Estimates and prices as tables in the terminal, or as JSON."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict

from crucible.catalog.offers import Offer
from crucible.estimate.estimate import Range
from crucible.estimate.history import EstimateRecord, accuracy
from crucible.estimate.request import EstimateResult
from crucible.formatting import counted, money, print_table, rough_duration
from crucible.reports.recommendation import hours_span, needs_summary, remarks, usd_span

_SHOWN = 15
_EXPLAINED = 3
_SHORT_SOURCES = {"history of other configurations": "other runs"}


def print_result(found: EstimateResult, everything: bool, as_json: bool) -> None:
    """The ranked offers; with `everything`, all of them and the rejected ones with their reason."""
    if as_json:
        print(json.dumps(found.to_dict(), indent=1))
        return
    print(needs_summary(found.needs, separator="\n  "))
    ranked = found.recommendation.ranked
    shown = ranked if everything else ranked[:_SHOWN]
    rows = [
        [
            str(place),
            entry.estimate.offer.key,
            _gpus(entry.estimate.offer),
            hours_span(entry.estimate.hours),
            usd_span(entry.estimate.usd),
            _SHORT_SOURCES.get(entry.estimate.speed.source, entry.estimate.speed.source),
        ]
        for place, entry in enumerate(shown, 1)
    ]
    print_table(["#", "offer", "GPU", "time", "cost", "speed from"], rows, numbers=(0,))
    if len(shown) < len(ranked):
        print(f"… and {len(ranked) - len(shown)} more with --all")
    for entry in ranked if everything else ranked[:_EXPLAINED]:
        print(f"{entry.estimate.offer.key}: {remarks(entry)}")
    if everything:
        for rejected in found.recommendation.rejected:
            print(f"not {rejected.offer.key}: {rejected.reason}")
    else:
        unfit = len(found.recommendation.rejected)
        print(f"{counted(unfit, 'offer')} {'does' if unfit == 1 else 'do'} not fit; --all lists the reasons")
    for sentence in (*found.recommendation.advice, *found.warnings):
        print(f"note: {sentence}")


def print_accuracy(records: list[EstimateRecord], as_json: bool) -> None:
    """Every past estimate with its result, and how good they were together."""
    together = accuracy(records)
    if as_json:
        jobs = [record.model_dump(mode="json") | {"hours_error": record.hours_error} for record in records]
        print(json.dumps({**together, "estimates": jobs}, indent=1))
        return
    if not records:
        print("no job with an estimate has ended yet")
        return
    rows = [
        [
            record.job_id,
            record.planned.offer,
            hours_span(Range(record.planned.low_hours, record.planned.hours, record.planned.high_hours)),
            rough_duration(record.hours),
            f"{record.hours_error:+.0%}",
            money(record.planned.usd),
            money(record.usd),
            record.planned.speed_source,
        ]
        for record in records
    ]
    print_table(["job", "offer", "estimated", "took", "error", "estimated cost", "cost", "speed from"], rows)
    print(
        f"{together['jobs']} jobs: median error {together['median_error']:.0%}, worst {together['worst_error']:.0%}, "
        f"{together['within_bounds']:.0%} within their bounds"
    )


def print_offers(offers: Sequence[Offer], as_json: bool) -> None:
    """The catalog."""
    if as_json:
        print(json.dumps([asdict(offer) for offer in offers], indent=1, default=str))
        return
    sources = list(dict.fromkeys(offer.source for offer in offers))
    rows = [
        [
            offer.key,
            _gpus(offer),
            f"{offer.gpu_memory_gib:g}" if offer.gpu_memory_gib else "",
            str(offer.vcpus or ""),
            f"{offer.memory_gib:.0f}" if offer.memory_gib else "",
            f"{offer.usd_per_hour:.4f}" + (" ?" if "usd_per_hour" in offer.assumed else ""),
            str(offer.as_of or ""),
            str(sources.index(offer.source) + 1),
        ]
        for offer in offers
    ]
    print_table(["offer", "GPU", "GiB each", "vCPU", "GiB", "USD/h", "price of", "source"], rows)
    print("? marks an assumed price")
    for number, source in enumerate(sources, 1):
        print(f"source {number}: {source}")


def _gpus(offer: Offer) -> str:
    return f"{offer.gpus} x {offer.gpu}" if offer.gpus > 1 else offer.gpu or "-"
