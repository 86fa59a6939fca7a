"""Where a job goes, what that will cost, and whether a budget allows it: decided before anything is launched."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime

import httpx
from prefect.exceptions import PrefectException

from crucible.billing.budgets import Reservation, release, reserve
from crucible.catalog.ec2 import spot_capacity
from crucible.catalog.offers import load_catalog
from crucible.checkpoints.commits import Checkpoints
from crucible.config import TrainConfig
from crucible.errors import ConfigError
from crucible.estimate.for_job import recommend_for
from crucible.estimate.ranking import PoolState, Recommendation
from crucible.jobs.job import Job
from crucible.placement.choice import (
    Choice,
    PlacementRequest,
    deadline_policy,
    observed_mtbf_seconds,
    placements,
    planned_cost,
    without_estimate,
)
from crucible.placement.overflow import OverflowPolicy
from crucible.store import Store
from crucible.supervision.placement_policy import PlacementPolicy
from crucible.supervision.retry_policy import Placement
from tasks.costs import budget_limits, costs_since
from tasks.recommendation import pool_states

CAPACITY_SECONDS = 300.0
"""Between two requests to AWS for spot capacity."""


def choose(store: Store, request: PlacementRequest) -> Choice:
    """Rank the offers of the requested pool and its fallbacks, or of every pool that is ready (`auto`).

    Raises:
        ConfigError: nothing fits, or even the low estimate is more than the job's cap or a budget allows.
    """
    pools = request.pools
    try:
        states = pool_states() if pools is None else None
        found = recommend_for(store, request.config, request.dataset, request.ranking_preferences(), states)
    except ConfigError as error:
        if not request.may_go_without_estimate:
            raise ConfigError(f"pool: {error}") from error
        return Choice(
            placements=[without_estimate(request.pool, request.preferences.instance, request.preferences.nodes)]
        )
    _require_budget(store, found, request)
    places = placements(found, per_pool=1)  # a pool chooses its machine itself: its sizes are not separate places
    if pools is not None:
        places.sort(key=lambda place: pools.index(place.pool))
    return Choice(
        placements=[_with_history(store, place) for place in places],
        planned=planned_cost(found),
        finish_by=request.finish_by,
    )


def saved_share(job: Job, total_steps: int) -> float:
    """The share of the job's steps that is saved already."""
    newest = next(iter(Checkpoints(job).list()), None)
    return newest.step / total_steps if newest else 0.0


def placement_policy_for(choice: Choice, job: Job, config: TrainConfig) -> PlacementPolicy:
    """How the job moves between its places: by its deadline if it has one, otherwise out of queues that are stuck."""
    newest = next(iter(Checkpoints(job).list()), None)
    by_deadline = deadline_policy(choice, config, newest.step if newest else 0, _SpotCapacity())
    return by_deadline or OverflowPolicy(choice.placements, pools_now)


def pools_now() -> Mapping[str, PoolState]:
    """The pools' states, or an empty mapping while the server does not answer."""
    try:
        return pool_states.fn(ask_capacity=False)
    except (httpx.HTTPError, PrefectException):
        return {}


class _SpotCapacity:
    """Asks AWS about spot machines, at most every `CAPACITY_SECONDS`."""

    def __init__(self) -> None:
        self._known: dict[str, bool] = {}
        self._asked_at = -math.inf

    def __call__(self, instance: str) -> bool | None:
        if time.monotonic() - self._asked_at > CAPACITY_SECONDS:
            self._known = spot_capacity(load_catalog())
            self._asked_at = time.monotonic()
        return self._known.get(instance)


def _require_budget(store: Store, found: Recommendation, request: PlacementRequest) -> None:
    """Reserve the low estimate of what is left to do in every budget that covers the job."""
    low_usd = found.ranked[0].estimate.usd.low * (1 - request.saved_share)
    if low_usd <= 0:
        return
    limits = [limit for limit in budget_limits(_refuse) if limit.covers(request.project, request.owner)]
    if not limits:
        return
    now = datetime.now(UTC)
    costs = costs_since(store, min(limit.began(now) for limit in limits))
    for place, limit in enumerate(limits):
        reservation = Reservation(job_id=request.job_id, usd=low_usd)
        if (reason := reserve(store, limit, costs, reservation, now)) is not None:
            for reserved in limits[:place]:
                release(store, reserved, request.job_id, now)
            raise ConfigError(f"budget: {reason}")


def _refuse(problem: str) -> None:
    raise ConfigError(f"budget: {problem}")


def _with_history(store: Store, place: Placement) -> Placement:
    """Interruptions observed on this pool take precedence over the catalog's assumption."""
    if place.mtbf_seconds is None:
        return place
    return replace(place, mtbf_seconds=observed_mtbf_seconds(store, place.pool) or place.mtbf_seconds)
