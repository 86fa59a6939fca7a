"""Today's prices from AWS and Modal, for those who have an account there.

A source is queried only if its credentials exist, and one that fails does not stop the others. A price that is more
than ten times off the known one is refused: it is in another unit or comes from a stand-in.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import date, datetime
from typing import Any, TypeVar

from crucible.catalog.ec2 import price_history
from crucible.catalog.offers import Offer
from crucible.formatting import counted

T = TypeVar("T")

_LARGEST_FACTOR = 10.0
_MODAL_CORES, _MODAL_GIB = 1, 8
"""CPU and memory added to a GPU's rate, as in the catalog's Modal rows."""
_SANDBOX_FACTOR = 3.0  # sandboxes pay three times the CPU and memory rate of functions


@dataclass(frozen=True)
class Refreshed:
    """The outcome: offers with new prices, and one message per source."""

    offers: tuple[Offer, ...]
    messages: tuple[str, ...]


def refresh(offers: Sequence[Offer], region: str, now: datetime) -> Refreshed:
    """Query every source that has credentials; offers without a new price are left out and named in a message."""
    sources: tuple[tuple[str, Callable[[], Mapping[str, float]], str], ...] = (
        ("EC2 spot price history", lambda: _spot_prices(offers, region, now), "ec2-spot"),
        ("AWS price list", lambda: _on_demand_prices(offers, region), "ec2-on-demand"),
        ("Modal billing rates", _modal_prices, "modal"),
    )
    fresh: list[Offer] = []
    messages: list[str] = []
    for name, query, pool in sources:
        prices = query_cloud(name, pool, query, messages)
        if prices is None:
            continue
        where = "" if pool == "modal" else f", {region}"
        taken, problems = _take(offers, pool, prices, f"{name}{where}", now.date())
        fresh += taken
        messages.append("; ".join([f"{name}: {counted(len(taken), 'price')}", *problems]))
    return Refreshed(tuple(_with_on_demand(fresh)), tuple(messages))


def query_cloud(name: str, pool: str, query: Callable[[], T], messages: list[str]) -> T | None:
    """What `query` returns; None when a pool's cloud cannot be queried, and why is added to the messages."""
    if (missing := why_unavailable(pool)) is not None:
        messages.append(f"{name}: skipped, {missing}")
        return None
    try:
        return query()
    except Exception as error:  # noqa: BLE001 (whatever a cloud's client raises becomes the message of that cloud)
        messages.append(f"{name}: {type(error).__name__}: {' '.join(str(error).split())}")
        return None


def why_unavailable(pool: str) -> str | None:
    """Why prices or bills of a pool's cloud cannot be queried (no credentials, no library); None if they can."""
    try:
        if pool == "modal":
            from modal.config import config

            return None if config.get("token_id") and config.get("token_secret") else "no Modal token is set up"
        import boto3

        return None if boto3.Session().get_credentials() is not None else "no AWS credentials are set up"
    except ImportError as error:
        return f"{error.name} is not installed"


def _take(
    offers: Iterable[Offer], pool: str, prices: Mapping[str, float], source: str, today: date
) -> tuple[list[Offer], list[str]]:
    taken, refused, missing = [], [], []
    for offer in offers:
        if offer.pool != pool:
            continue
        price = prices.get(offer.instance)
        if price is None:
            missing.append(offer.instance)
            continue
        if not offer.usd_per_hour / _LARGEST_FACTOR <= price <= offer.usd_per_hour * _LARGEST_FACTOR:
            refused.append(f"{offer.instance} at ${price:g}, known ${offer.usd_per_hour:g}")
            continue
        assumed = tuple(name for name in offer.assumed if name != "usd_per_hour")
        taken.append(replace(offer, usd_per_hour=round(price, 6), source=source, as_of=today, assumed=assumed))
    problems = [f"no price for {', '.join(missing)}"] if missing else []
    if refused:
        problems.append(f"refused, more than {_LARGEST_FACTOR:g} times off: {', '.join(refused)}")
    return taken, problems


def _with_on_demand(fresh: list[Offer]) -> list[Offer]:
    """Copy the new on-demand price to the spot offer of the same machine."""
    on_demand = {offer.instance: offer.usd_per_hour for offer in fresh if offer.pool == "ec2-on-demand"}
    return [
        offer
        if offer.pool != "ec2-spot" and offer.instance not in on_demand
        else replace(offer, on_demand_usd_per_hour=on_demand.get(offer.instance, offer.on_demand_usd_per_hour))
        for offer in fresh
    ]


def _types(offers: Sequence[Offer], pool: str) -> list[str]:
    return sorted({offer.instance for offer in offers if offer.pool == pool})


def _spot_prices(offers: Sequence[Offer], region: str, now: datetime) -> dict[str, float]:
    """Median over the zones of the region, in USD per hour, by machine type."""
    import boto3

    prices: dict[str, list[float]] = {}
    for entry in price_history(
        boto3.client("ec2", region_name=region), {"InstanceTypes": _types(offers, "ec2-spot")}, now
    ):
        prices.setdefault(entry["InstanceType"], []).append(float(entry["SpotPrice"]))
    return {instance: statistics.median(values) for instance, values in prices.items()}


def _on_demand_prices(offers: Sequence[Offer], region: str) -> dict[str, float]:
    """Linux, shared tenancy, nothing preinstalled; the price list itself lives in us-east-1."""
    import boto3

    client = boto3.client("pricing", region_name="us-east-1")
    prices = {}
    for instance in _types(offers, "ec2-on-demand"):
        wanted = {
            "instanceType": instance,
            "regionCode": region,
            "operatingSystem": "Linux",
            "preInstalledSw": "NA",
            "tenancy": "Shared",
            "capacitystatus": "Used",
        }
        filters = [{"Type": "TERM_MATCH", "Field": field, "Value": value} for field, value in wanted.items()]
        pages = client.get_paginator("get_products").paginate(ServiceCode="AmazonEC2", Filters=filters)
        found = (on_demand_price(json.loads(product)) for page in pages for product in page["PriceList"])
        if (price := next((price for price in found if price is not None), None)) is not None:
            prices[instance] = price
    return prices


def on_demand_price(product: dict[str, Any]) -> float | None:
    """USD per hour from one product of the AWS price list, or None if it has no on-demand term by the hour."""
    for term in product.get("terms", {}).get("OnDemand", {}).values():
        for dimension in term["priceDimensions"].values():
            if dimension["unit"] == "Hrs" and "USD" in dimension["pricePerUnit"]:
                return float(dimension["pricePerUnit"]["USD"])
    return None


def _modal_prices() -> dict[str, float]:
    import modal

    return modal_prices(dict(modal.Workspace.from_context().billing.rates()))


def modal_prices(rates: Mapping[str, Any]) -> dict[str, float]:
    """USD per hour of a sandbox with each GPU, one core and 8 GiB, from Modal's rates per second."""
    per_second = {name.upper(): float(rate) for name, rate in rates.items()}
    cpu_and_memory = _MODAL_CORES * per_second.get("CPU", 0.0) + _MODAL_GIB * per_second.get("MEMORY", 0.0)
    rest = {"CPU", "MEMORY"}
    return {
        name.removeprefix("GPU_").replace("_", "-"): (rate + _SANDBOX_FACTOR * cpu_and_memory) * 3600
        for name, rate in per_second.items()
        if name not in rest
    }
