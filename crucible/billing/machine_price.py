"""The price of the machine that claimed an attempt, which may be another than the planned one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from crucible.catalog.offers import Offer
from crucible.jobs.records import Launch

EC2_POOLS = ("ec2-spot", "ec2-on-demand")


@dataclass(frozen=True)
class MachinePrice:
    """The price, and a sentence where it differs from the plan or is only a guess."""

    usd_per_hour: float
    remark: str = ""


def machine_price(
    launch: Launch,
    instance: str,
    lifecycle: str,
    spot_usd_per_hour: float | None,
    offers: Mapping[str, Offer],
) -> MachinePrice:
    """The price of one `instance`, which claimed the attempt that `launch` planned.

    In this order: the spot market's price of its zone, the planned price if it is the planned machine, the catalog's
    price (on-demand for a machine that EC2 says is on-demand), the planned price as a guess. `lifecycle` is `spot` or
    `on-demand`, as EC2's metadata name it; `offers` are by `pool/instance`.
    """
    planned_price = launch.usd_per_hour / launch.nodes
    planned = MachinePrice(planned_price)
    if launch.pool not in EC2_POOLS or not instance:
        return planned
    pool = {"spot": "ec2-spot", "on-demand": "ec2-on-demand"}.get(lifecycle, launch.pool)
    as_planned = instance == launch.instance and pool == launch.pool
    if lifecycle == "spot" and spot_usd_per_hour is not None:
        price = spot_usd_per_hour
    elif as_planned:
        return planned
    elif (offer := offers.get(f"{pool}/{instance}")) is not None:
        price = offer.usd_per_hour
    else:
        guess = f"no price is known for {pool}/{instance}: the bill assumes the planned ${planned_price:.4g}/h"
        return MachinePrice(planned_price, guess)
    if price == planned_price:
        return MachinePrice(price)
    plan = f"{launch.instance or launch.pool} at ${planned_price:.4g}/h"
    return MachinePrice(price, f"the machine is {instance} at ${price:.4g}/h; planned was {plan}")
