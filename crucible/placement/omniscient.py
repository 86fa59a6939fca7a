"""The least a job can cost if the future is known: the bound that deadline policies are compared with.

With perfect knowledge three things can be assumed without loss: a spot machine is taken at the first moment of a run
of availability and kept until it is interrupted or the job is done; on-demand is used in one block between two spot
machines, right before the second; and everything before is waiting. The state is then the time lost so far (waiting
and changeovers), which must not exceed deadline minus work, and one dynamic programme over the runs of the trace, exact
in units of the greatest common divisor of the times, finds the cheapest plan in about a millisecond.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from crucible.placement.policies import DeadlineJob

Array = NDArray[np.float64]


def least_cost(spot_available: NDArray[np.bool_], job: DeadlineJob) -> float:
    """Cost of the best plan in seconds of spot price; infinite when no plan meets the deadline.

    `spot_available` has one entry per tick from the start of the job, and must reach to its deadline. On-demand may
    start between ticks, which makes the bound a little lower than any policy that acts at ticks can reach. Times are
    taken in whole seconds, rounded in favour of the bound.
    """
    tick, changeover = round(job.tick_seconds), math.floor(job.changeover_seconds)
    work, deadline = math.floor(job.work_seconds), math.ceil(job.deadline_seconds)
    unit = math.gcd(tick, changeover, work, deadline)
    tick, changeover, work, deadline = tick // unit, changeover // unit, work // unit, deadline // unit
    ratio = job.on_demand_ratio
    if deadline < work + changeover:
        return math.inf

    lost = np.arange(deadline - work + 1)  # index of the arrays below: units of time lost so far
    idle = np.full(lost.shape, np.inf)  # cheapest cost so far, holding no machine
    idle[0] = 0.0
    on_demand = np.full(lost.shape, np.inf)  # ... holding an on-demand machine
    best, now = math.inf, 0
    for available, ticks in _runs(spot_available):
        length = min(ticks * tick, deadline - now)
        if length <= 0:
            break
        left = work - (now - lost)
        idle[left <= 0] = on_demand[left <= 0] = np.inf  # done already, counted when it was finished
        best = min(
            best,
            _cheapest(on_demand + ratio * left, left <= length),
            _cheapest(idle + ratio * (left + changeover), left + changeover <= length),
        )
        next_idle = _later(idle, length)
        if available:
            spot = np.minimum(idle, on_demand)
            best = min(best, _cheapest(spot + left + changeover, left + changeover <= length))
            next_idle = np.minimum(next_idle, _later(spot, changeover) + length)
        # On-demand started after waiting i of the `length` units: loses i + changeover, costs ratio * (length - i).
        # As a function of the loss that is a minimum over a sliding window of idle[j] + ratio * j.
        begun = _later(_window_minimum(idle + ratio * lost, length), changeover) + ratio * (length - lost + changeover)
        on_demand = np.minimum(on_demand + ratio * length, begun)
        idle, now = next_idle, now + length
    return best * unit


def _runs(spot_available: NDArray[np.bool_]) -> list[tuple[bool, int]]:
    """The trace as (available, number of ticks) of its unbroken runs."""
    changes = np.flatnonzero(np.diff(spot_available.astype(np.int8))) + 1
    bounds = [0, *changes.tolist(), len(spot_available)]
    return [(bool(spot_available[first]), last - first) for first, last in pairwise(bounds)]


def _cheapest(cost: Array, allowed: NDArray[np.bool_]) -> float:
    return float(cost[allowed].min(initial=math.inf))


def _later(cost: Array, units: int) -> Array:
    """The same costs with that much more time lost."""
    moved = np.full_like(cost, np.inf)
    if units < len(cost):
        moved[units:] = cost[: len(cost) - units]
    return moved


def _window_minimum(values: Array, width: int) -> Array:
    """result[i] = min(values[i - width + 1 .. i]), by doubling the window."""
    result, reach = values.copy(), 1
    while reach < min(width, len(values)):
        step = min(reach, width - reach)
        result[step:] = np.minimum(result[step:], result[:-step].copy())
        reach += step
    return result
