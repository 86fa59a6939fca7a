"""Where a job may go: chosen once per flow run, and kept, so that a restarted supervisor does not choose again."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import TYPE_CHECKING

from pydantic import BaseModel, ConfigDict, Field

from crucible.billing.costs import skipping_damage
from crucible.catalog.offers import OWN_POOLS, TRIED_ANYWAY, load_catalog
from crucible.config import TrainConfig
from crucible.datasets.meta import DatasetMeta
from crucible.errors import ConfigError, ObjectExists, ObjectMissing
from crucible.estimate.history import PlannedCost
from crucible.estimate.ranking import Preferences, Ranked, Recommendation, why_nothing_fits
from crucible.formatting import money, rough_duration
from crucible.jobs.job import Job
from crucible.jobs.records import Limits, Record
from crucible.store import Store
from crucible.supervision.retry_policy import Placement
from crucible.supervision.snapshot import FinishedAttempt

if TYPE_CHECKING:
    from crucible.placement.deadline import DeadlinePolicy

logger = logging.getLogger(__name__)

AUTO = "auto"
FALLBACK = {"ec2-spot": ("ec2-on-demand",)}
"""Where a job continues when the requested pool cannot start it."""
ENOUGH_INTERRUPTIONS = 3
"""With fewer than these on record, the catalog's rate is the better guess."""
_SLOWER = 1.25
"""How much longer than on spot a job may take on the machine that has to save its deadline."""


class PlacementRequest(BaseModel):
    """What is to be placed, for whom, and under which limits."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    job_id: str
    config: TrainConfig
    dataset: DatasetMeta
    pool: str
    """A work pool, or `auto` for the best of those that are ready."""
    limits: Limits = Field(default_factory=Limits)
    preferences: Preferences = Field(default_factory=Preferences)
    project: str = "default"
    owner: str = ""
    finish_by: datetime | None = None
    saved_share: float = Field(0.0, ge=0, le=1)
    """Of a job that is continued: the share of its steps that is saved already."""

    @property
    def pools(self) -> tuple[str, ...] | None:
        """The allowed pools in the order they are tried; None for any."""
        return None if self.pool == AUTO else (self.pool, *FALLBACK.get(self.pool, ()))

    @property
    def may_go_without_estimate(self) -> bool:
        """Your own machine or cluster can be tried even if the catalog cannot judge it, and so can a machine of
        SkyPilot's that you name, unless limits need the estimate."""
        capped = self.limits.max_cost_usd is not None and self.pool in OWN_POOLS
        tried = self.pool in TRIED_ANYWAY or (self.pool == "skypilot" and bool(self.preferences.instance))
        return tried and not capped and self.finish_by is None

    def ranking_preferences(self) -> Preferences:
        """`preferences` with what pool, cap and deadline add to them."""
        added: dict[str, object] = {"max_cost_usd": self.limits.max_cost_usd}
        if self.pools is not None:
            added["pools"] = self.pools
        if self.finish_by is not None:
            hours = (self.finish_by - datetime.now(UTC)).total_seconds() / 3600
            added["finish_within_hours"] = hours / max(1 - self.saved_share, 0.01)  # only the rest has to be done
        return self.preferences.model_copy(update=added)


class Choice(Record):
    """The places to try, in order, and the estimate for the first; None if the catalog has no estimate for it."""

    placements: list[Placement]
    planned: PlannedCost | None = None
    finish_by: datetime | None = None


def read_choice(job: Job, flow_run_id: str) -> Choice | None:
    """What this flow run chose when it first started; None when it did not get that far."""
    try:
        return job.store.read_model(_key(flow_run_id), Choice)
    except ObjectMissing:
        return None


def remember_choice(job: Job, flow_run_id: str, choice: Choice) -> None:
    """Keep the choice for a restart of this flow run; the first one stands."""
    try:
        job.store.create_model(_key(flow_run_id), choice)
    except ObjectExists:
        return


def placements(recommendation: Recommendation, per_pool: int = 2, most: int = 6) -> list[Placement]:
    """The best offer first, then the next best, at most `per_pool` of each pool.

    A job that finds no capacity on spot thus goes on demand, to Modal or home, rather than through every size of the
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


def without_estimate(pool: str, instance: str = "", nodes: int = 1) -> Placement:
    """The pool as the only place, at the price that the catalog has for so many machines; 0 where it has none.

    Raises `ConfigError` when the named machine is not in the catalog: nobody would know what it costs.
    """
    offers = [offer for offer in load_catalog() if offer.pool == pool and not offer.own_machine]
    offer = next((offer.on_nodes(nodes) for offer in offers if not instance or offer.instance == instance), None)
    if offer is None and instance:
        raise ConfigError(
            f"resources.instance: {instance!r} of {pool} has no price; `crucible prices import` reads SkyPilot's, and "
            "offers.csv takes your own"
        )
    if offer is None:
        return Placement(pool, nodes=nodes)
    return Placement(
        pool=pool,
        instance=offer.instance,
        usd_per_hour=offer.usd_per_hour,
        nodes=offer.nodes,
        mtbf_seconds=None if offer.mtbf_hours is None else offer.mtbf_hours * 3600,
        startup_seconds=offer.startup_seconds,
    )


def planned_cost(recommendation: Recommendation) -> PlannedCost:
    """The best offer's estimate, kept with the job and compared at its end (`history.remember_plan`)."""
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


def deadline_policy(
    choice: Choice, config: TrainConfig, first_step: int, capacity: Callable[[str], bool | None]
) -> DeadlinePolicy | None:
    """The policy that keeps the choice's deadline; None without a deadline, or with nothing to choose between.

    It needs a first place that can be interrupted, and one that cannot, costs money and is about as fast. `first_step`
    is what is saved already; `capacity` says whether spot machines of a type are available.
    """
    places = choice.placements
    pair = _spot_and_steady(places)
    if choice.finish_by is None or pair is None:
        return None
    from crucible.placement.deadline import DeadlinePolicy  # loads numpy, which a job without a deadline does not need

    spot, steady = places[pair[0]], pair[1]
    return DeadlinePolicy(
        places=places,
        spot=pair[0],
        steady=steady,
        finish_by=choice.finish_by,
        total_steps=config.max_iters,
        seconds_per_step=max(1e-6, spot.hours * 3600 - spot.startup_seconds) / config.max_iters,
        report_steps=config.log_interval,
        first_step=first_step,
        capacity=lambda: capacity(spot.instance),
    )


def observed_mtbf_seconds(store: Store, pool: str) -> float | None:
    """Mean seconds of machine time between interruptions on `pool`, over all jobs on record; None: too few to say.

    Notices and losses count; the job's own end, its own failure, a move and a person's request do not.
    """
    seconds, interruptions = 0.0, 0
    for job_id in Job.ids(store):
        with skipping_damage(logger.warning, f"job {job_id} is left out of the interruptions"):
            for attempt in Job(store, job_id).attempts():
                launch, outcome = attempt.read_launch(), attempt.read_outcome()
                if launch is None or outcome is None or launch.pool != pool:
                    continue
                seconds += outcome.seconds
                interruptions += FinishedAttempt(outcome, 0).taken_away
    return seconds / interruptions if interruptions >= ENOUGH_INTERRUPTIONS else None


def _placement(entry: Ranked, place: int) -> Placement:
    estimate, offer = entry.estimate, entry.estimate.offer
    figures = f"{rough_duration(estimate.hours.likely)}, {money(estimate.usd.likely)}"
    rank = "best" if place == 0 else f"number {place + 1}"
    reason = f"{rank} of the offers that fit ({figures}{': ' + ', '.join(entry.pros) if entry.pros else ''})"
    if entry.idle_gpus:
        reason += f"; {entry.idle_gpus}"
    return Placement(
        pool=offer.pool,
        instance="" if offer.own_machine else offer.instance,
        usd_per_hour=offer.usd_per_hour,
        nodes=offer.nodes,
        mtbf_seconds=None if offer.mtbf_hours is None else offer.mtbf_hours * 3600,
        reason=reason,
        startup_seconds=round(estimate.breakdown.startup, 1),
        hours=estimate.hours.likely,
    )


def _spot_and_steady(places: Sequence[Placement]) -> tuple[int, int] | None:
    first = places[0]
    if first.mtbf_seconds is None or first.usd_per_hour <= 0:
        return None
    for number, place in enumerate(places):
        if place.mtbf_seconds is None and place.usd_per_hour > 0 and place.hours <= _SLOWER * first.hours:
            return 0, number
    return None


def _key(flow_run_id: str) -> str:
    return f"choices/{flow_run_id}.json"
