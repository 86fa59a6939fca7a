"""Where a job goes, what that will cost, and whether it may: decided before anything is launched."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from crucible.config import TrainConfig
from crucible.datasets.meta import DatasetMeta
from crucible.deciding import Placement
from crucible.errors import ConfigError
from crucible.records import Limits
from crucible.routing.auto import recommend_for
from crucible.routing.budgets import budget_state, why_over_budget
from crucible.routing.catalog import OWN_POOLS, load_catalog
from crucible.routing.costs import attempt_costs
from crucible.routing.history import PlannedCost
from crucible.routing.interruptions import observed_mtbf_seconds
from crucible.routing.placements import placements, planned
from crucible.routing.recommend import Preferences, Recommendation
from crucible.store import Store
from tasks.costs import budget_limits
from tasks.recommendation import pool_states

AUTO = "auto"
FALLBACK = {"ec2-spot": ("ec2-on-demand",)}
"""Where a job goes on when the pool that was asked for cannot start it."""


@dataclass(frozen=True)
class Choice:
    """The places to try, in order, and the estimate for the first; None where the catalog knows too little."""

    placements: Sequence[Placement]
    planned: PlannedCost | None


def choose(
    store: Store,
    config: TrainConfig,
    meta: DatasetMeta,
    pool: str,
    limits: Limits,
    preferences: Preferences,
    project: str,
    owner: str,
) -> Choice:
    """Rank the offers of the pool that was asked for and its fallbacks, or of every pool that is ready (`auto`).

    Raises `ConfigError` when nothing fits, or when even the low estimate is more than the job's cap or a budget allows.
    """
    wanted = (pool, *FALLBACK.get(pool, ()))
    preferences = preferences.model_copy(
        update={"max_cost_usd": limits.max_cost_usd} | ({} if pool == AUTO else {"pools": wanted})
    )
    try:
        found = recommend_for(store, config, meta, preferences, pool_states() if pool == AUTO else None)
    except ConfigError as error:
        # A machine of one's own that the catalog cannot judge is still there to be tried; anything else is not.
        if pool not in OWN_POOLS or limits.max_cost_usd is not None:
            raise ConfigError(f"pool: {error}") from error
        return Choice([Placement(pool)], None)
    _require_budget(store, found, project, owner)
    places = placements(found, per_pool=1)  # a pool chooses its machine itself: its sizes are not separate places
    if pool != AUTO:
        places = sorted(places, key=lambda place: wanted.index(place.pool))
    return Choice([_with_history(store, place) for place in places], planned(found))


def _require_budget(store: Store, found: Recommendation, project: str, owner: str) -> None:
    low_usd = found.ranked[0].estimate.usd.low
    limits = [limit for limit in budget_limits() if limit.covers(project, owner)] if low_usd > 0 else []
    if not limits:
        return
    now = datetime.now(UTC)
    known = {offer.key: offer for offer in load_catalog()}
    costs = attempt_costs(store, known, since=min(limit.began(now) for limit in limits))
    states = [budget_state(limit, costs, now) for limit in limits]
    if (reason := why_over_budget(states, low_usd, project, owner)) is not None:
        raise ConfigError(f"budget: {reason}")


def _with_history(store: Store, place: Placement) -> Placement:
    """The interruptions that were seen on this pool count before those the catalog assumes."""
    if place.mtbf_seconds is None:
        return place
    return replace(place, mtbf_seconds=observed_mtbf_seconds(store, place.pool) or place.mtbf_seconds)
