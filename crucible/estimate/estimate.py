"""Time and cost of a run on an offer, from start-up to the last step: low, likely and high.

Time is the sum of start-up, training, loss estimates, saves, and what interruptions cost (restart and the steps since
the last save, with the checkpoint interval after Young and Daly). The cost is that time at the offer's price, with the
minimum that is billed per start.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from crucible.catalog.offers import Offer
from crucible.estimate.speed import Speed
from crucible.intervals import checkpoint_interval_seconds, lost_share

_STORE_BYTES_PER_SECOND = 90e6  # one stream to or from S3 (assumed)
_DISK_BYTES_PER_SECOND = 300e6
_SNAPSHOT_BYTES_PER_SECOND = 2e9  # copying the state away from the step loop
_PROCESS_START_SECONDS = 15.0  # Python, torch, the model
_LONGEST_INTERVAL_SECONDS = 300.0


class Work(Protocol):
    """What an estimate needs to know about a run: `Needs` for Crucible's trainer, `ScriptNeeds` for your own script."""

    @property
    def steps(self) -> int: ...
    @property
    def tokens_per_step(self) -> int: ...
    @property
    def evaluation_tokens(self) -> int: ...
    @property
    def checkpoint_bytes(self) -> int: ...
    @property
    def dataset_bytes(self) -> int | None: ...
    @property
    def checkpoint_interval_seconds(self) -> float | None: ...


@dataclass(frozen=True)
class Range:
    """A value with its bounds, which should contain the true value 8 times out of 10."""

    low: float
    likely: float
    high: float


@dataclass(frozen=True)
class Breakdown:
    """Where the likely time goes, in seconds."""

    startup: float
    training: float
    evaluation: float
    saves: float
    interruptions: float


@dataclass(frozen=True)
class Estimate:
    """One offer's estimate. `interruptions` is their expected number, lifetime limits included."""

    offer: Offer
    hours: Range
    usd: Range
    speed: Speed
    breakdown: Breakdown
    interruptions: float
    checkpoint_interval_seconds: float
    on_demand_usd: float | None
    """The likely cost of the same training on the same machine without interruptions."""

    @property
    def saved_share(self) -> float | None:
        """Saved against on-demand: (1 - paid / on-demand), as SageMaker counts managed spot savings."""
        if not self.on_demand_usd or not self.offer.interruptible:
            return None
        return 1 - self.usd.likely / self.on_demand_usd

    def to_dict(self) -> dict[str, Any]:
        """For `--json`: plain values, in hours, seconds and USD."""
        offer = self.offer
        return {
            "offer": offer.key,
            "pool": offer.pool,
            "instance": offer.instance,
            "gpu": offer.gpu,
            "gpus": offer.gpus,
            "usd_per_hour": offer.usd_per_hour,
            "assumed": list(offer.assumed),
            "source": offer.source,
            "as_of": offer.as_of.isoformat() if offer.as_of else None,
            "hours": asdict(self.hours),
            "usd": asdict(self.usd),
            "seconds_per_step": self.speed.seconds_per_step,
            "speed_source": self.speed.source,
            "speed_detail": self.speed.detail,
            "breakdown_seconds": asdict(self.breakdown),
            "interruptions": self.interruptions,
            "checkpoint_interval_seconds": self.checkpoint_interval_seconds,
            "on_demand_usd": self.on_demand_usd,
            "saved_share": self.saved_share,
        }


def estimate(work: Work, offer: Offer, speed: Speed, waiting_seconds: float = 0.0) -> Estimate:
    """Estimate `work` on `offer` at `speed`; `waiting_seconds` in the pool's queue count as time, not as cost."""
    scenarios = [
        _scenario(work, offer, speed.low_seconds_per_step, speed.evaluation_share, 0.5, 0.0),
        _scenario(work, offer, speed.seconds_per_step, speed.evaluation_share, 1.0, 1.0),
        _scenario(work, offer, speed.high_seconds_per_step, speed.evaluation_share, 2.0, 2.0),
    ]
    hours = [(scenario.seconds + waiting_seconds) / 3600 for scenario in scenarios]
    usd = [scenario.usd(offer) for scenario in scenarios]
    likely = scenarios[1]
    return Estimate(
        offer=offer,
        hours=Range(*hours),
        usd=Range(*usd),
        speed=speed,
        breakdown=likely.breakdown,
        interruptions=likely.interruptions,
        checkpoint_interval_seconds=likely.interval,
        on_demand_usd=_on_demand_usd(likely, offer),
    )


@dataclass(frozen=True)
class _Scenario:
    breakdown: Breakdown
    interruptions: float
    interval: float

    @property
    def seconds(self) -> float:
        parts = self.breakdown
        return parts.startup + parts.training + parts.evaluation + parts.saves + parts.interruptions

    def usd(self, offer: Offer) -> float:
        return billed_seconds(self.seconds, self.interruptions, offer) / 3600 * offer.usd_per_hour


def billed_seconds(seconds: float, interruptions: float, offer: Offer) -> float:
    """Billed seconds for `seconds` spread over all attempts: each at least the minimum, rounded up."""
    attempts = 1 + interruptions
    each = max(seconds / attempts, offer.minimum_seconds)
    return math.ceil(each / offer.granularity_seconds) * offer.granularity_seconds * attempts


def _scenario(
    work: Work, offer: Offer, seconds_per_step: float, evaluation_share: float, startup: float, interrupted: float
) -> _Scenario:
    """`startup` and `interrupted` scale the assumed start-up time and rate of interruptions."""
    training = work.steps * seconds_per_step
    per_token = seconds_per_step / work.tokens_per_step
    evaluation = work.evaluation_tokens * per_token * evaluation_share
    begin = offer.startup_seconds * startup + _PROCESS_START_SECONDS
    begin += _transfer_seconds(work.dataset_bytes or 0, offer)

    stall = 0.05 + work.checkpoint_bytes / _SNAPSHOT_BYTES_PER_SECOND
    durable = work.checkpoint_bytes / _DISK_BYTES_PER_SECOND + _transfer_seconds(work.checkpoint_bytes, offer)
    mtbf = math.inf if offer.mtbf_hours is None or not interrupted else offer.mtbf_hours * 3600 / interrupted
    interval = work.checkpoint_interval_seconds or checkpoint_interval_seconds(
        stall, mtbf, min(3 * durable, _LONGEST_INTERVAL_SECONDS), _LONGEST_INTERVAL_SECONDS
    )
    working = training + evaluation
    saves = stall * (working // interval + 1)
    restart = begin + _transfer_seconds(work.checkpoint_bytes, offer)
    lost_per_second = lost_share(interval, 0.0, mtbf, durable, restart) if mtbf < math.inf else 0.0
    lost = (working + saves) * lost_per_second
    interruptions = (working + saves + lost) / mtbf if mtbf < math.inf else 0.0
    if offer.lifetime_hours is not None:  # an announced end: nothing is repeated
        ends = int((begin + working + saves + lost) // (offer.lifetime_hours * 3600))
        interruptions += ends
        lost += ends * restart
    return _Scenario(Breakdown(begin, training, evaluation, saves, lost), interruptions, interval)


def _transfer_seconds(size: int, offer: Offer) -> float:
    return size / (_DISK_BYTES_PER_SECOND if offer.own_machine else _STORE_BYTES_PER_SECOND)


def _on_demand_usd(likely: _Scenario, offer: Offer) -> float | None:
    if offer.on_demand_usd_per_hour is None:
        return None
    undisturbed = likely.seconds - likely.breakdown.interruptions
    return billed_seconds(undisturbed, 0, offer) / 3600 * offer.on_demand_usd_per_hour
