"""How often to save: the checkpoint interval that loses least time, after Young and Daly.

Saving often wastes time in saves, saving rarely wastes the steps repeated after an interruption. With a save that
stalls the step loop for C seconds, and interruptions that come on average every M seconds, the share of time lost is
about

    C / t + (t / 2 + W + R) / M        t: interval, W: time until a save is durable, R: time to restart

whose minimum over t is Young's sqrt(2 C M); Daly's expression adds the terms that matter when C is no longer tiny
beside M. Ten times off the optimum doubles the loss, twice off costs little: the interval may follow the measured C and
M lazily.

* J. W. Young, "A first order approximation to the optimum checkpoint interval", CACM 17(9), 1974.
* J. T. Daly, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22(3), 2006, eq. 37.
"""

from __future__ import annotations

import math

from crucible.errors import ConfigError

# With no history at all: the mean time between interruptions assumed on spot machines. Pessimistic on purpose (V100
# spot traces of 2023 show about 4 h), because saving too often is cheap and saving too rarely is not.
ASSUMED_SPOT_MTBF_SECONDS = 2 * 3600.0


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


def _require(holds: bool, field: str, value: float, wanted: str) -> None:
    if not holds:  # also catches NaN, for which every comparison is false
        raise ConfigError(f"{field} is {value}: it must be {wanted}")
