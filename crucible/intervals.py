"""How often to save: the checkpoint interval that loses least time, after Young and Daly.

Saving often wastes time in saves, saving rarely wastes the steps repeated after an interruption. With a save that
stalls the step loop for C seconds, and interruptions that come on average every M seconds, the share of time lost is
about

    C / t + (t / 2 + W + R) / M        t: interval, W: time until a save is durable, R: time to restart

whose minimum over t is Young's sqrt(2 C M); Daly's expression adds the terms that matter when C is no longer tiny
beside M. An interval twice off the optimum costs little, so following the measured C and M lazily is enough.

The agent and a trainer without one use the same `IntervalPolicy` on the same `SaveCosts`.

* J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974.
* J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22(3), 2006, eq. 37.
"""

from __future__ import annotations

import math
import statistics
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

from crucible.errors import ConfigError

UNINTERRUPTED_MTBF_SECONDS = 24 * 3600.0
"""Mean time between failures of a machine that nobody takes away: it crashes, runs out of memory or loses power."""
FIRST_INTERVAL_SECONDS = 15.0
"""Until a save has been measured."""


@dataclass
class SaveCosts:
    """What the last few saves cost, in seconds."""

    stall_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=5))
    """How long the step loop stood still."""
    write_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=5))
    """From the snapshot to a whole checkpoint on the local disk."""
    upload_seconds: deque[float] = field(default_factory=lambda: deque(maxlen=5))
    """From there to the manifest in the store; empty for a trainer without an agent."""

    @property
    def stall(self) -> float:
        """Median stall in seconds; 0 before the first save."""
        return _median(self.stall_seconds)

    @property
    def durable(self) -> float:
        """Median seconds from the snapshot until the checkpoint is durable."""
        return _median(self.write_seconds) + _median(self.upload_seconds)


@dataclass(frozen=True)
class IntervalPolicy:
    """What decides how often to save, besides what a save costs."""

    mtbf_seconds: float | None = None
    """Mean time between interruptions; None when nobody takes the machine away."""
    minimum_seconds: float = 5.0
    maximum_seconds: float = 300.0
    fixed_seconds: float | None = None
    """The interval that the user asked for."""

    @property
    def first_seconds(self) -> float:
        """The interval before the first save has been measured, in seconds."""
        return self.fixed_seconds or min(FIRST_INTERVAL_SECONDS, self.maximum_seconds)

    def wanted_seconds(self, costs: SaveCosts) -> float:
        """The interval that loses least time, in seconds, however long a save takes to become durable."""
        if self.fixed_seconds is not None:
            return self.fixed_seconds
        return checkpoint_interval_seconds(
            max(costs.stall, 1e-3),  # no measured stall is a clock too coarse, not a save that is free
            UNINTERRUPTED_MTBF_SECONDS if self.mtbf_seconds is None else self.mtbf_seconds,
            self.minimum_seconds,
            max(self.maximum_seconds, self.minimum_seconds),
        )

    def interval_seconds(self, costs: SaveCosts) -> float:
        """Seconds between the starts of two saves: as wanted, or half as long again as a save takes to become durable,
        so that saves never queue up."""
        wanted = self.wanted_seconds(costs)
        return 1.5 * costs.durable if costs.durable > wanted else wanted


def checkpoint_interval_seconds(
    save_cost_seconds: float, mtbf_seconds: float, minimum: float = 1.0, maximum: float = 1800.0
) -> float:
    """Seconds between the starts of two saves that lose the least time, kept within [minimum, maximum].

    Args:
        save_cost_seconds: how long one save keeps the step loop from working (for an asynchronous save: the stall
            alone, not the upload).
        mtbf_seconds: mean time between interruptions; `math.inf` on a machine that is never taken away.
        minimum: lower bound in seconds; give the time a save needs to become durable, so that saves never queue up.
        maximum: upper bound in seconds, also the answer when interruptions are never expected.

    Source: Daly 2006, eq. 37: sqrt(2CM) * (1 + sqrt(C/2M)/3 + C/18M) - C for C < 2M, else M. That counts the working
    time between saves; C is added back, since a timer in a trainer runs from save to save.

    Raises:
        ConfigError: a negative or undefined time, a zero mtbf, or minimum > maximum.

    >>> round(checkpoint_interval_seconds(0.5, 4 * 3600))
    120
    """
    _require(
        save_cost_seconds >= 0 and math.isfinite(save_cost_seconds), "save_cost_seconds", save_cost_seconds, ">= 0"
    )
    _require(mtbf_seconds > 0, "mtbf_seconds", mtbf_seconds, "> 0 (math.inf when nothing interrupts)")
    _require(minimum > 0 and math.isfinite(minimum), "minimum", minimum, "> 0")
    _require(maximum >= minimum, "maximum", maximum, f">= minimum ({minimum})")
    if math.isinf(mtbf_seconds):
        return maximum
    if save_cost_seconds >= 2 * mtbf_seconds:
        optimum = mtbf_seconds + save_cost_seconds
    else:
        ratio = save_cost_seconds / (2 * mtbf_seconds)
        optimum = math.sqrt(2 * save_cost_seconds * mtbf_seconds) * (1 + math.sqrt(ratio) / 3 + ratio / 9)
    return min(max(optimum, minimum), maximum)


def lost_share(
    interval_seconds: float,
    save_cost_seconds: float,
    mtbf_seconds: float,
    durable_seconds: float = 0.0,
    restart_seconds: float = 0.0,
    notice_saves: float = 0.0,
) -> float:
    """Time lost to saves, rework and restarts, per second of useful work (0.02 = 2 % longer).

    C/t + ((1-p)(t/2 + W) + R)/M: `durable_seconds` (W) is the time from the stall until the save is in the store,
    `restart_seconds` (R) the time from the interruption to the first new step, `notice_saves` (p) the share of
    interruptions whose notice leaves time for a last save. First order in t/M, good to half a percent for t < M/10.

    Raises:
        ConfigError: an interval or mtbf that is not positive, or p outside [0, 1].
    """
    _require(interval_seconds > 0, "interval_seconds", interval_seconds, "> 0")
    _require(mtbf_seconds > 0, "mtbf_seconds", mtbf_seconds, "> 0")
    _require(0 <= notice_saves <= 1, "notice_saves", notice_saves, "between 0 and 1")
    rework = (1 - notice_saves) * (interval_seconds / 2 + durable_seconds)
    return save_cost_seconds / interval_seconds + (rework + restart_seconds) / mtbf_seconds


def _median(values: Sequence[float]) -> float:
    return statistics.median(values) if values else 0.0


def _require(holds: bool, field: str, value: float, wanted: str) -> None:
    if not holds:  # also catches NaN, for which every comparison is false
        raise ConfigError(f"{field} is {value}: it must be {wanted}")
