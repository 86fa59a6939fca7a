"""From a recommendation to the list of places that a supervisor tries, one after the other."""

from __future__ import annotations

from crucible.errors import ConfigError
from crucible.estimate.history import PlannedCost
from crucible.estimate.ranking import Ranked, Recommendation, why_nothing_fits
from crucible.formatting import money, rough_duration
from crucible.supervision.retry_policy import Placement


def placements(recommendation: Recommendation, per_pool: int = 2, most: int = 6) -> list[Placement]:
    """The best offer first, then the next ones, of other kinds too: at most `per_pool` of each pool.

    A job that finds no capacity on spot thus goes on demand, to Modal or home rather than through every size of the
    same pool.

    Raises:
        ConfigError: nothing fits; the message says why.
    """
    if recommendation.best is None:
        raise ConfigError(why_nothing_fits(recommendation))
    chosen: list[Ranked] = []
    for entry in recommendation.ranked:
        pool = entry.estimate.offer.pool
        if sum(other.estimate.offer.pool == pool for other in chosen) < per_pool and len(chosen) < most:
            chosen.append(entry)
    return [_placement(entry, place) for place, entry in enumerate(chosen)]


def planned(recommendation: Recommendation) -> PlannedCost:
    """The best offer's estimate, to be kept with the job and compared at its end (`history.remember_plan`)."""
    if recommendation.best is None:
        raise ConfigError(why_nothing_fits(recommendation))
    best = recommendation.best.estimate
    return PlannedCost(
        offer=best.offer.key,
        speed_source=best.speed.source,
        low_hours=best.hours.low,
        hours=best.hours.likely,
        high_hours=best.hours.high,
        low_usd=best.usd.low,
        usd=best.usd.likely,
        high_usd=best.usd.high,
    )


def _placement(entry: Ranked, place: int) -> Placement:
    estimate, offer = entry.estimate, entry.estimate.offer
    figures = f"{rough_duration(estimate.hours.likely)}, {money(estimate.usd.likely)}"
    rank = "best" if place == 0 else f"number {place + 1}"
    reason = f"{rank} of the offers that fit ({figures}{': ' + ', '.join(entry.pros) if entry.pros else ''})"
    return Placement(
        pool=offer.pool,
        instance="" if offer.own_machine else offer.instance,
        usd_per_hour=offer.usd_per_hour,
        mtbf_seconds=None if offer.mtbf_hours is None else offer.mtbf_hours * 3600,
        reason=reason,
        startup_seconds=round(estimate.breakdown.startup, 1),
        hours=estimate.hours.likely,
    )
