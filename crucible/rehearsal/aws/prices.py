"""Spot prices of the rehearsed AWS: the catalog's. moto answers $0.00001 for every machine, and no bill looks real."""

from __future__ import annotations

import functools
from typing import Any

from moto.core.responses import ActionResult
from moto.ec2.responses.spot_instances import SpotInstances

from crucible.catalog.offers import load_catalog
from crucible.rehearsal.aws.patching import replace


@functools.cache
def install() -> None:
    """Change moto in this process. Calling it again does nothing. Raises `ConfigError` for a damaged catalog."""
    usd_per_hour = {offer.instance: offer.usd_per_hour for offer in load_catalog() if offer.pool == "ec2-spot"}
    of_moto = SpotInstances.describe_spot_price_history

    def describe(response: SpotInstances) -> ActionResult:
        found: Any = of_moto(response).result
        for entry in found["SpotPriceHistory"]:
            if price := usd_per_hour.get(entry["InstanceType"]):
                entry["SpotPrice"] = f"{price:.6f}"
        return ActionResult(found)

    replace(SpotInstances, describe_spot_price_history=describe)
