"""Where a job goes, what that will cost, and whether it may: decided before anything is launched."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from typing import Any

import httpx
from prefect.exceptions import PrefectException

from crucible.billing.budgets import budget_state, why_over_budget
from crucible.billing.costs import attempt_costs
from crucible.catalog.offers import OWN_POOLS, load_catalog
from crucible.catalog.spot_capacity import spot_capacity
from crucible.checkpoints.commits import Checkpoints
from crucible.config import TrainConfig
from crucible.datasets.meta import DatasetMeta
from crucible.errors import ConfigError
from crucible.estimate.for_job import recommend_for
from crucible.estimate.ranking import PoolState, Preferences, Recommendation
from crucible.jobs.job import Job
from crucible.jobs.records import Limits
from crucible.placement.candidates import placements, planned
from crucible.placement.choice import Choice, deadline_course
from crucible.placement.interruptions import observed_mtbf_seconds
from crucible.placement.overflow import Overflow
from crucible.store import Store
from crucible.supervision.placement_policy import PlacementPolicy
from crucible.supervision.retry_policy import Placement
from tasks.costs import budget_limits
from tasks.recommendation import pool_states

AUTO = "auto"
CAPACITY_SECONDS = 300.0
"""Between two questions to AWS whether spot machines are to be had."""
FALLBACK = {"ec2-spot": ("ec2-on-demand",)}
"""Where a job goes on when the pool that was asked for cannot start it."""


def choose(
    store: Store,
    config: TrainConfig,
    meta: DatasetMeta,
    pool: str,
    limits: Limits,
    preferences: Preferences,
    project: str,
    owner: str,
    finish_by: datetime | None = None,
    saved_share: float = 0.0,
) -> Choice:
    """Rank the offers of the pool that was asked for and its fallbacks, or of every pool that is ready (`auto`).

    Of a job that is continued, `saved_share` of the work is done; only the rest has to be finished by `finish_by`.

    Raises `ConfigError` when nothing fits, or when even the low estimate is more than the job's cap or a budget allows.
    """
    wanted = (pool, *FALLBACK.get(pool, ()))
    wishes: dict[str, Any] = {"max_cost_usd": limits.max_cost_usd}
    if pool != AUTO:
        wishes["pools"] = wanted
    if finish_by is not None:
        hours = (finish_by - datetime.now(UTC)).total_seconds() / 3600
        wishes["finish_within_hours"] = hours / max(1 - saved_share, 0.01)
    preferences = preferences.model_copy(update=wishes)
    try:
        found = recommend_for(store, config, meta, preferences, pool_states() if pool == AUTO else None)
    except ConfigError as error:
        # A machine of one's own that the catalog cannot judge is still there to be tried; anything else is not.
        if pool not in OWN_POOLS or limits.max_cost_usd is not None or finish_by is not None:
            raise ConfigError(f"pool: {error}") from error
        return Choice(placements=[Placement(pool)])
    _require_budget(store, found, project, owner)
    places = placements(found, per_pool=1)  # a pool chooses its machine itself: its sizes are not separate places
    if pool != AUTO:
        places = sorted(places, key=lambda place: wanted.index(place.pool))
    return Choice(
        placements=[_with_history(store, place) for place in places], planned=planned(found), finish_by=finish_by
    )


def saved_share(job: Job, total_steps: int) -> float:
    """How much of the job's steps is in the store already."""
    newest = next(iter(Checkpoints(job).list()), None)
    return newest.step / total_steps if newest else 0.0


def placement_policy_for(choice: Choice, job: Job, config: TrainConfig) -> PlacementPolicy:
    """How the job moves between its places: by its deadline if it has one, otherwise out of queues that do not move."""
    newest = next(iter(Checkpoints(job).list()), None)
    by_deadline = deadline_course(choice, config, newest.step if newest else 0, _SpotCapacity())
    return by_deadline or Overflow(choice.placements, pools_now)


def pools_now() -> Mapping[str, PoolState]:
    """The pools' states, or nothing when the server cannot be asked."""
    try:
        return pool_states.fn(ask_capacity=False)
    except (httpx.HTTPError, PrefectException):
        return {}


class _SpotCapacity:
    """Asks AWS about spot machines, and not again for a while."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}
        self._asked_at = -math.inf

    def __call__(self, instance: str) -> bool | None:
        if time.monotonic() - self._asked_at > CAPACITY_SECONDS:
            self._known = spot_capacity(load_catalog())
            self._asked_at = time.monotonic()
        return self._known.get(instance)


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
