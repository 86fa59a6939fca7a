"""Where a script of your own goes: to the pool that was named, because its length cannot be estimated."""

from __future__ import annotations

from crucible.catalog.offers import OWN_POOLS, load_catalog
from crucible.errors import ConfigError
from crucible.placement.choice import AUTO, FALLBACK, Choice
from crucible.supervision.retry_policy import Placement


def place_script(pool: str, gpus: int = 1, instance: str = "") -> Choice:
    """The named pool and its fallbacks, on the cheapest machine with so many GPUs, or on the one that is named.

    Raises `ConfigError` for `auto`, and when the catalog has no such machine.
    """
    if pool == AUTO:
        raise ConfigError(
            "pool: auto compares estimates, and there is none for a script of your own; name a pool. crucible estimate "
            "--script FILE --hours 3 --measured-on g5.xlarge compares machines by the hours that you state"
        )
    if pool in OWN_POOLS:
        return Choice(placements=[Placement(pool)])
    places = []
    for candidate in (pool, *FALLBACK.get(pool, ())):
        offers = [
            offer
            for offer in load_catalog()
            if offer.pool == candidate
            and not offer.missing
            and (offer.instance == instance if instance else offer.gpus == gpus)
        ]
        if offers:
            offer = min(offers, key=lambda offer: offer.usd_per_hour)
            places.append(
                Placement(
                    pool=candidate,
                    instance=offer.instance,
                    usd_per_hour=offer.usd_per_hour,
                    mtbf_seconds=None if offer.mtbf_hours is None else offer.mtbf_hours * 3600,
                    reason="as asked" if candidate == pool else f"where {pool} has no machine",
                    startup_seconds=offer.startup_seconds,
                )
            )
    if not places:
        wanted = f"machine {instance!r}" if instance else f"machine with {gpus} GPUs"
        raise ConfigError(f"pool: the catalog has no {wanted} on {pool}; `crucible prices` lists what there is")
    return Choice(placements=places)
