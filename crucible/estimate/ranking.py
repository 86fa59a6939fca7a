"""Where to run: the offers that fit, ranked, with pros and cons; the others with the reason why not.

`recommend` is a pure function of needs, offers, preferences and history: no Prefect, no network, no clock.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from crucible.catalog.offers import Offer
from crucible.estimate.estimate import Estimate, estimate
from crucible.estimate.history import SpeedRecord
from crucible.estimate.needs import Needs, why_it_does_not_fit
from crucible.estimate.script import ScriptNeeds
from crucible.estimate.speed import Speed, idle_gpus, speed_on
from crucible.formatting import money, rough_duration

_RESERVED_DISCOUNT = 0.37  # one year, nothing upfront, G and P types; assumed, AWS prices it per type
_STEADY_HOURS = 24.0
UNKNOWN = "unknown"


class Preferences(BaseModel):
    """What you want from the place where a job runs."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    optimize_for: Literal["cost", "time", "balanced"] = Field(
        "balanced", description="What to optimize; balanced: cost, plus value_of_hour_usd for each hour."
    )
    value_of_hour_usd: float = Field(1.0, ge=0, description="For balanced: what saving an hour is worth to you.")
    pools: tuple[str, ...] | None = Field(None, description="Allowed work pools. Empty: all.")
    instance: str = Field("", description="Only this machine type. Empty: all.")
    gpus: int | None = Field(None, ge=0, description="Only machines with so many GPUs, yours excepted. Empty: all.")
    nodes: int = Field(1, ge=1, description="How many machines train together; their prices are counted together.")
    privacy: Literal["any", "dedicated"] = Field(
        "any", description="dedicated: no host that other customers' work shares."
    )
    uninterrupted: bool = Field(False, description="Only machines that are not interrupted before the job is done.")
    max_cost_usd: float | None = Field(None, gt=0, description="The most that the job may cost.")
    finish_within_hours: float | None = Field(None, gt=0, description="Hours from now until it has to be done.")
    longest_hours: float = Field(336.0, gt=0, description="Leave out offers that would take longer.")


@dataclass(frozen=True)
class PoolState:
    """The current state of a work pool."""

    workers_online: int
    queued: int = 0
    paused: bool = False
    waiting_seconds: float = 0.0
    """Expected time in its queue."""
    capacity: Mapping[str, bool] = field(default_factory=dict)
    """Results of a capacity probe by machine type; a missing type is unknown."""

    def has_room(self, instance: str = "") -> bool:
        """Whether a run that is sent there would start at once, as far as is known."""
        ready = self.workers_online > 0 and not self.paused and not self.queued
        return ready and self.capacity.get(instance) is not False

    def availability(self, instance: str) -> str:
        """For people."""
        known = {True: "likely", False: "none now", None: "unknown"}[self.capacity.get(instance)]
        paused = "paused, " if self.paused else ""
        return f"{paused}workers online: {self.workers_online}, runs waiting: {self.queued}, capacity: {known}"


@dataclass(frozen=True)
class Ranked:
    """An offer that fits."""

    estimate: Estimate
    score: float
    pros: tuple[str, ...]
    cons: tuple[str, ...]
    availability: str = UNKNOWN
    """Workers online, queue, capacity; `unknown` if the pools were not queried."""
    idle_gpus: str | None = None
    """Which GPUs would be paid for and not used."""


@dataclass(frozen=True)
class Rejected:
    """An offer that does not fit, and the first reason why."""

    offer: Offer
    reason: str


@dataclass(frozen=True)
class Recommendation:
    """All offers, best first; `advice` are sentences about the best one."""

    ranked: tuple[Ranked, ...]
    rejected: tuple[Rejected, ...]
    advice: tuple[str, ...] = ()

    @property
    def best(self) -> Ranked | None:
        return self.ranked[0] if self.ranked else None

    def to_dict(self) -> dict[str, Any]:
        """For `--json`."""
        return {
            "ranked": [
                {
                    **entry.estimate.to_dict(),
                    "rank": place,
                    "pros": list(entry.pros),
                    "cons": list(entry.cons),
                    "availability": entry.availability,
                }
                for place, entry in enumerate(self.ranked, 1)
            ],
            "rejected": [{"offer": entry.offer.key, "reason": entry.reason} for entry in self.rejected],
            "advice": list(self.advice),
        }


def recommend(
    needs: Needs | ScriptNeeds,
    offers: Sequence[Offer],
    preferences: Preferences,
    records: Sequence[SpeedRecord] = (),
    probed: Mapping[str, Speed] | None = None,
    pools: Mapping[str, PoolState] | None = None,
    only_ready: bool = False,
) -> Recommendation:
    """Rank `offers` for a run.

    Args:
        records: speeds of past runs (`history.speeds`).
        probed: speeds measured just now, by offer key.
        pools: state of the work pools, where known; a pool that is not in it counts as not set up.
        only_ready: reject offers whose pool could not start the job now (for `pool=auto`); otherwise that is a con.
    """
    fitting: list[Estimate] = []
    rejected: list[Rejected] = []
    for offer in (offer.on_nodes(preferences.nodes) for offer in offers):
        state = None if pools is None else _state(pools, offer)
        measured = (probed or {}).get(offer.key)
        found = _estimate_or_reason(needs, offer, preferences, records, measured, state, only_ready)
        if isinstance(found, str):
            rejected.append(Rejected(offer, found))
        else:
            fitting.append(found)
    fitting.sort(key=lambda found: (_score(found, preferences), found.usd.likely, found.hours.likely, found.offer.key))
    ranked = tuple(
        Ranked(
            found,
            _score(found, preferences),
            *_pros_and_cons(needs, found, fitting, preferences, pools),
            UNKNOWN if pools is None else _state(pools, found.offer).availability(found.offer.instance),
            idle_gpus(needs, found.offer) if isinstance(needs, Needs) else None,
        )
        for found in fitting
    )
    return Recommendation(ranked, tuple(rejected), _advice(fitting[0]) if fitting else ())


def why_nothing_fits(recommendation: Recommendation) -> str:
    """The message when every offer was rejected: the most frequent kinds of reason, each with an example."""
    kinds: dict[str, list[Rejected]] = {}
    for entry in recommendation.rejected:
        kind = " ".join(word for word in entry.reason.split() if word.isalpha())  # without names and figures
        kinds.setdefault(kind, []).append(entry)
    frequent = sorted(kinds.values(), key=len, reverse=True)[:3]
    return "no offer fits; " + "; ".join(
        f"{len(entries)} of {len(recommendation.rejected)}: {entries[0].reason} ({entries[0].offer.key})"
        for entries in frequent
    )


def _estimate_or_reason(
    needs: Needs | ScriptNeeds,
    offer: Offer,
    preferences: Preferences,
    records: Sequence[SpeedRecord],
    probed: Speed | None,
    state: PoolState | None,
    only_ready: bool,
) -> Estimate | str:
    if preferences.pools is not None and offer.pool not in preferences.pools:
        return f"pool {offer.pool} is not among those allowed ({', '.join(preferences.pools)})"
    if preferences.instance and offer.instance != preferences.instance:
        return f"{offer.instance} is not the machine asked for ({preferences.instance})"
    if preferences.gpus is not None and not offer.own_machine and offer.gpus != preferences.gpus:
        return f"{offer.gpus} GPUs are not the {preferences.gpus} asked for"
    if preferences.privacy == "dedicated" and offer.tenancy != "dedicated":
        return "its hosts are shared with other customers, and privacy = dedicated"
    if preferences.uninterrupted and offer.interruptible:
        return "can be interrupted at any time, and uninterrupted = true"
    reason = why_it_does_not_fit(needs, offer) if isinstance(needs, Needs) else needs.why_it_does_not_fit(offer)
    if reason is not None:
        return reason
    if only_ready and state is not None and (reason := _not_ready(offer, state)) is not None:
        return reason
    speed = speed_on(offer, needs, records, probed) if isinstance(needs, Needs) else needs.speed_on(offer)
    if speed is None:
        return "nothing is known about its speed: no history, no probe, no peak in the catalog"
    found = estimate(needs, offer, speed, state.waiting_seconds if state is not None else 0.0)
    return _too_long_or_dear(found, preferences) or found


def _too_long_or_dear(found: Estimate, preferences: Preferences) -> str | None:
    hours, usd = found.hours, found.usd
    limit = preferences.finish_within_hours
    if limit is not None and hours.likely > limit:
        return f"likely to take {rough_duration(hours.likely)}, longer than the {rough_duration(limit)} allowed"
    if limit is None and hours.likely > preferences.longest_hours:
        return f"likely to take {rough_duration(hours.likely)}; raise longest_hours to include it"
    if preferences.uninterrupted and found.offer.lifetime_hours and hours.likely > found.offer.lifetime_hours:
        return f"ends after {found.offer.lifetime_hours:g} h, and uninterrupted = true"
    if preferences.max_cost_usd is not None and usd.low > preferences.max_cost_usd:
        return f"costs {money(usd.low)} at least, above max_cost_usd = {money(preferences.max_cost_usd)}"
    return None


def _state(pools: Mapping[str, PoolState], offer: Offer) -> PoolState:
    return pools.get(offer.pool, PoolState(workers_online=0))


def _not_ready(offer: Offer, state: PoolState) -> str | None:
    if state.paused:
        return f"pool {offer.pool} is paused"
    if state.workers_online == 0:
        return f"pool {offer.pool} has no worker online"
    if state.capacity.get(offer.instance) is False:
        return f"pool {offer.pool} has no capacity for {offer.instance} now"
    return None


def _score(entry: Estimate, preferences: Preferences) -> float:
    """Lower is better."""
    if preferences.optimize_for == "cost":
        return entry.usd.likely
    if preferences.optimize_for == "time":
        return entry.hours.likely
    return entry.usd.likely + preferences.value_of_hour_usd * entry.hours.likely


def _pros_and_cons(
    needs: Needs | ScriptNeeds,
    entry: Estimate,
    fitting: Sequence[Estimate],
    preferences: Preferences,
    pools: Mapping[str, PoolState] | None,
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    offer, pros, cons = entry.offer, [], []
    if offer.own_machine:
        pros.append("your own machine: free, the data stays here")
    elif entry.usd.likely <= min(other.usd.likely for other in fitting if not other.offer.own_machine):
        pros.append("the cheapest that is rented")
    if len(fitting) > 1 and entry.hours.likely <= min(other.hours.likely for other in fitting):
        pros.append("the fastest")
    if entry.saved_share is not None and entry.saved_share > 0:
        pros.append(f"{entry.saved_share:.0%} below on-demand")
    if not offer.interruptible and not offer.own_machine:
        pros.append("not interrupted")
    if offer.startup_seconds <= 60 and not offer.own_machine:
        pros.append("starts within a minute")
    if entry.speed.source in ("history", "probe"):
        pros.append(f"speed known from {entry.speed.source}")

    if entry.interruptions >= 0.1:
        cons.append(f"about {entry.interruptions:.1f} interruptions expected")
    if offer.lifetime_hours is not None and entry.hours.likely > offer.lifetime_hours:
        cons.append(f"moves to a new machine every {offer.lifetime_hours:g} h")
    if isinstance(needs, Needs) and (idle := idle_gpus(needs, offer)) is not None:
        cons.append(idle)
    if entry.speed.source == "peak":
        cons.append("speed guessed from the hardware's peak (--probe or a first run measures it)")
    if "usd_per_hour" in offer.assumed:
        cons.append("price assumed")
    if offer.tenancy == "shared":
        cons.append("hosts shared with other customers")
    if preferences.max_cost_usd is not None and entry.usd.likely > preferences.max_cost_usd:
        cons.append("likely to stop at max_cost_usd before the end")
    if preferences.finish_within_hours is not None and entry.hours.high > preferences.finish_within_hours:
        cons.append("may be late")
    if pools is not None:
        state = _state(pools, offer)
        if (reason := _not_ready(offer, state)) is not None:
            cons.append(reason)
        elif state.queued:
            cons.append(f"{state.queued} runs wait in its queue")
    return tuple(pros), tuple(cons)


def _advice(best: Estimate) -> tuple[str, ...]:
    """Reserved instances, in figures, when the best offer is a long run on demand."""
    offer = best.offer
    if offer.interruptible or offer.own_machine or best.hours.likely <= _STEADY_HOURS:
        return ()
    reserved = offer.usd_per_hour * (1 - _RESERVED_DISCOUNT)
    per_year = reserved * 8760
    return (
        f"{rough_duration(best.hours.likely)} on demand: a one-year reservation of {offer.instance} costs about "
        f"{money(reserved)}/h around the clock (assumed {_RESERVED_DISCOUNT:.0%} off), {money(per_year)} a year; "
        f"it pays if you use the machine more than {per_year / offer.usd_per_hour:,.0f} hours a year",
    )
