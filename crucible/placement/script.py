"""Where a script of your own goes: to the pool that was named, because its length cannot be estimated."""

from __future__ import annotations

import difflib

from crucible.catalog.offers import TRIED_ANYWAY, load_catalog
from crucible.catalog.skypilot import POOL as SKYPILOT
from crucible.errors import ConfigError
from crucible.placement.choice import AUTO, FALLBACK, Choice, without_estimate
from crucible.resources import Resources
from crucible.supervision.retry_policy import Placement


def place_script(pool: str, wanted: Resources) -> Choice:
    """The named pool and its fallbacks, on the cheapest machine with so many GPUs, or on the one that is named.

    Raises `ConfigError` for `auto`, and when the catalog has no such machine.
    """
    if pool == AUTO:
        raise ConfigError(
            "pool: auto compares estimates, and there is none for a script of your own; name a pool. crucible estimate "
            "--script FILE --hours 3 --measured-on g5.xlarge compares machines by the hours that you state"
        )
    wanted.job_variables(pool)  # refuses what the pool cannot choose
    if pool in TRIED_ANYWAY:
        return Choice(placements=[without_estimate(pool, nodes=wanted.node_range.most)])
    known = dict.fromkeys((*TRIED_ANYWAY, *(offer.pool for offer in load_catalog())))
    if pool == SKYPILOT and pool not in known:
        raise ConfigError(
            "pool: the catalog has no machines of skypilot yet; take them from SkyPilot's own tables with: "
            "crucible prices import"
        )
    if pool not in known:
        near = difflib.get_close_matches(pool, known, n=1)
        fix = f"did you mean {near[0]}?" if near else f"choose {', '.join(known)}"
        raise ConfigError(f"pool: there is no pool {pool!r}; {fix}")
    places = [place for candidate in (pool, *FALLBACK.get(pool, ())) if (place := _cheapest(candidate, wanted, pool))]
    if not places:
        machine = " ".join(
            part for part in (wanted.instance, f"with {wanted.gpus} GPUs" if wanted.gpus is not None else "") if part
        )
        raise ConfigError(
            f"resources: the catalog has no machine {machine} on {pool}; `crucible prices ls` shows what there is"
        )
    return Choice(placements=places)


def _cheapest(pool: str, wanted: Resources, asked: str) -> Placement | None:
    gpus = 1 if wanted.gpus is None else wanted.gpus
    # Modal sells GPUs by the piece, up to eight in a sandbox; elsewhere they come with the machine.
    many = gpus if pool == "modal" and 1 < gpus <= 8 else 1
    offers = [offer for offer in load_catalog() if offer.pool == pool and not offer.missing]
    if wanted.instance:
        offers = [offer for offer in offers if offer.instance == wanted.instance]
    if wanted.gpus is not None or not wanted.instance:
        offers = [offer for offer in offers if offer.gpus * many == gpus]
    if not offers:
        return None
    offer = min(offers, key=lambda offer: offer.usd_per_hour).on_nodes(wanted.node_range.most)
    return Placement(
        pool=pool,
        instance=f"{offer.instance}:{many}" if many > 1 else offer.instance,
        usd_per_hour=offer.usd_per_hour * many,
        nodes=offer.nodes,
        mtbf_seconds=None if offer.mtbf_hours is None else offer.mtbf_hours * 3600,
        reason="as asked" if pool == asked else f"where {asked} has no machine",
        startup_seconds=offer.startup_seconds,
    )
