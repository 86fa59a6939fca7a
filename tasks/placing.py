"""Where a job goes, what that will cost, and whether it may: decided before anything is launched."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from crucible.config import TrainConfig
from crucible.datasets.meta import DatasetMeta
from crucible.errors import ConfigError
from crucible.jobs import Job, Limits
from crucible.reports import Metrics
from crucible.routing import history
from crucible.routing.budgets import budget_state, why_over_budget
from crucible.routing.catalog import OWN_POOLS, Offer, load_catalog
from crucible.routing.costs import attempt_costs
from crucible.routing.interruptions import observed_mtbf_seconds
from crucible.routing.machine import with_own_machine
from crucible.routing.needs import Needs, needs_of
from crucible.routing.placements import placements, planned
from crucible.routing.recommend import Preferences, Recommendation, recommend, why_nothing_fits
from crucible.routing.speed import speed_record
from crucible.store import Store
from crucible.supervision import Placement
from tasks.costs import budget_limits
from tasks.recommendation import pool_states

AUTO = "auto"
FALLBACK = {"ec2-spot": ("ec2-on-demand",)}
"""Where a job goes on when the pool that was asked for cannot start it."""


@dataclass(frozen=True)
class Choice:
    """The places to try, in order, and the estimate for the first; None where the catalog knows too little."""

    placements: Sequence[Placement]
    planned: history.PlannedCost | None


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
    needs = _needs(config, meta)
    wanted = (pool, *FALLBACK.get(pool, ()))
    preferences = preferences.model_copy(
        update={"max_cost_usd": limits.max_cost_usd} | ({} if pool == AUTO else {"pools": wanted})
    )
    offers = with_own_machine(load_catalog())
    found = recommend(
        needs,
        offers,
        preferences,
        history.speeds(store),
        pools=pool_states() if pool == AUTO else None,
        only_ready=pool == AUTO,
    )
    if found.best is None:
        return _without_estimate(pool, found, limits)
    _require_budget(store, offers, found, project, owner)
    places = placements(found)
    if pool != AUTO:
        places = sorted(places, key=lambda place: wanted.index(place.pool))
    return Choice([_with_history(store, place) for place in places], planned(found))


def remember(job: Job, config: TrainConfig, meta: DatasetMeta) -> None:
    """After a job's end: how fast it ran on each offer, and how wrong its estimate was."""
    needs = _needs(config, meta)
    offers = with_own_machine(load_catalog())
    metrics = Metrics(job)
    for attempt in job.attempts():
        launch = attempt.launch
        speeds = [row["seconds_per_step"] for row in metrics.of_attempt(attempt) if row.get("seconds_per_step")]
        offer = next((o for o in offers if launch and o.pool == launch.pool and _is_at(o, launch.instance)), None)
        if offer is not None and speeds:
            history.remember_speed(job.root, speed_record(needs, offer, statistics.median(speeds), len(speeds)))
    history.remember_truth(job)


def _needs(config: TrainConfig, meta: DatasetMeta) -> Needs:
    return needs_of(
        config,
        meta.vocab_size,
        dataset_bytes=meta.tokens * meta.token_bytes,
        val_tokens=meta.splits["val"].tokens,
    )


def _is_at(offer: Offer, instance: str) -> bool:
    return offer.own_machine or offer.instance == instance


def _without_estimate(pool: str, found: Recommendation, limits: Limits) -> Choice:
    """A machine of one's own that the catalog cannot judge is still there to be tried; anything else is not."""
    if pool not in OWN_POOLS or limits.max_cost_usd is not None:
        raise ConfigError(f"pool: {why_nothing_fits(found)}")
    return Choice([Placement(pool)], None)


def _require_budget(store: Store, offers: Sequence[Offer], found: Recommendation, project: str, owner: str) -> None:
    low_usd = found.ranked[0].estimate.usd.low
    limits = [limit for limit in budget_limits() if limit.covers(project, owner)] if low_usd > 0 else []
    if not limits:
        return
    now = datetime.now(UTC)
    known = {offer.key: offer for offer in offers}
    costs = attempt_costs(store, known, since=min(limit.began(now) for limit in limits))
    states = [budget_state(limit, costs, now) for limit in limits]
    if (reason := why_over_budget(states, low_usd, project, owner)) is not None:
        raise ConfigError(f"budget: {reason}")


def _with_history(store: Store, place: Placement) -> Placement:
    """The interruptions that were seen on this pool count before those the catalog assumes."""
    if place.mtbf_seconds is None:
        return place
    return replace(place, mtbf_seconds=observed_mtbf_seconds(store, place.pool) or place.mtbf_seconds)
