"""The machines of an attempt's nodes, as its records name them, and what they would cost on demand."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence

from crucible.catalog.offers import Offer
from crucible.jobs.records import Claim, Heartbeat, Launch, Outcome


def machines_of(launch: Launch | None, claim: Claim | None, record: Heartbeat | Outcome | None) -> list[str]:
    """The machine of each node of an attempt, the first one's first. A pool may choose others than the planned one, and
    for each node another."""
    first = (claim.instance if claim else "") or (launch.instance if launch else "")
    nodes = claim.nodes if claim else launch.nodes if launch else 1
    further = record.further_instances if record else []
    return [first, *further] if further else [first] * nodes


def shown_machines(machines: Sequence[str]) -> str:
    """As people read them.

    >>> shown_machines(["g5.xlarge"]), shown_machines(["g5.xlarge", "g6.xlarge", "g5.xlarge"])
    ('g5.xlarge', 'g5.xlarge x 2 + g6.xlarge')
    """
    counted = Counter(machine for machine in machines if machine)
    return " + ".join(f"{machine} x {count}" if count > 1 else machine for machine, count in counted.items())


def on_demand_usd_per_hour(pool: str, machines: Sequence[str], offers: Mapping[str, Offer]) -> float | None:
    """What they cost together on demand; None where that is not known of all."""
    found = [offers.get(f"{pool}/{machine}") for machine in machines]
    prices = [offer.on_demand_usd_per_hour if offer else None for offer in found]
    known = [price for price in prices if price is not None]
    return sum(known) if len(known) == len(prices) else None
