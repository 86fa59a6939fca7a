"""Crucible's own deadline policy: at every tick the choice with the least expected cost to the end of the job.

Spot availability has heavy tails: the longer spot has been available, the longer it will stay, and the longer it has
been gone, the longer it will be gone. Both are modelled as Lomax (Pareto II) durations, S(x) = (1 + x/b)^-a, four
numbers in all. Given them the cheapest plan is a dynamic programme over

    time left  x  slack (time left minus work left)  x  spot available or not, and for how long  x  machine held,

solved backwards once per job (about half a second); deciding is then a table look-up. What it adds to Uniform Progress:
slack has a price that depends on how much of it is left. A fresh outage is waited out when slack is plentiful and
bridged by on-demand when it is not, and a move to spot, which costs two changeovers if spot vanishes, is made only
while that price is worth paying.

The four numbers are maximum-likelihood fits to five of the nine zones in the public SkyPilot spot traces (docs/cost.md
lists them); the other four were used only for reporting. Learning them per zone, or updating them during a run with a
Bayesian mixture, gained nothing on these traces, so the policy has no other parameter.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from crucible.placement.policies import (
    ON_DEMAND,
    SPOT,
    WAIT,
    Choices,
    DeadlineJob,
    Rule,
    Seen,
    never_late,
    slack_seconds,
)

Array = NDArray[np.float32]

_HOUR = 3600.0
# Bounds in seconds of the classes that ages are sorted into: finer classes change the cost by less than 0.1 %.
_AGE_BOUNDS = np.array([0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0]) * _HOUR
_LAST_AGE = 36 * _HOUR  # the open last class is treated as ending here
_CLASSES = len(_AGE_BOUNDS)
_MOST_STEPS = 800  # time steps of the table
_SLACK_LEVELS = 1000
_FORBIDDEN = np.float32(1e6)  # in steps of spot price; no plan costs as much


@dataclass(frozen=True)
class Lomax:
    """Durations with survival function S(x) = (1 + x / scale_seconds)^-shape."""

    shape: float
    scale_seconds: float

    def leave_chance(self, step_seconds: float) -> NDArray[np.float64]:
        """Per age class: the chance that the run ends within one step, constant within the class."""
        bounds = np.append(_AGE_BOUNDS, _LAST_AGE)
        hazard = self.shape * np.diff(np.log(bounds + self.scale_seconds)) / np.diff(bounds)
        return -np.expm1(-hazard * step_seconds)


SPOT_RUNS = Lomax(shape=1.08, scale_seconds=0.795 * _HOUR)
SPOT_OUTAGES = Lomax(shape=1.37, scale_seconds=0.927 * _HOUR)


def lookahead(job: DeadlineJob) -> Rule:
    """The rule with the least expected cost for `job` if spot runs and outages follow the two distributions."""
    plan = _Plan(job)

    def rule(seen: Seen) -> Choices:
        return never_late(job, seen, plan.choose(job, seen))

    return rule


def _transitions(step: float) -> NDArray[np.float64]:
    """Chances between the phases (outage by age class, then available by age class) within one step."""
    chances = np.zeros((2 * _CLASSES, 2 * _CLASSES))
    widths = np.diff(np.append(_AGE_BOUNDS, np.inf))
    for side, law in enumerate((SPOT_OUTAGES, SPOT_RUNS)):
        own, other = side * _CLASSES, (1 - side) * _CLASSES
        for age_class, leave in enumerate(law.leave_chance(step)):
            grow = (1 - leave) * min(1.0, step / widths[age_class])
            chances[own + age_class, other] += leave
            chances[own + age_class, own + min(age_class + 1, _CLASSES - 1)] += grow
            chances[own + age_class, own + age_class] += 1 - leave - grow
    return chances


class _Plan:
    """Best choice by (steps left, slack level, phase, machine held), by backward induction."""

    def __init__(self, job: DeadlineJob) -> None:
        self._step = max(job.tick_seconds, job.deadline_seconds / _MOST_STEPS)
        steps = math.ceil(job.deadline_seconds / self._step) + 1
        slack_steps = max(1.0, (job.deadline_seconds - job.work_seconds) / self._step)
        self._per_step = int(np.clip(_SLACK_LEVELS / slack_steps, 1, 16))  # slack levels per time step
        self._levels = math.ceil(slack_steps * self._per_step) + 2
        self._table = np.zeros((steps + 1, self._levels, 2 * _CLASSES, 3), dtype=np.int8)
        self._fill(job, _transitions(self._step))

    def choose(self, job: DeadlineJob, seen: Seen) -> Choices:
        left = (job.deadline_seconds - seen.elapsed_seconds) / self._step
        row = int(np.clip(round(left), 0, len(self._table) - 1))
        level = np.floor(slack_seconds(job, seen) / self._step * self._per_step)
        level = np.clip(level, 0, self._levels - 1).astype(np.int64)
        age_class = np.searchsorted(_AGE_BOUNDS, seen.state_age_seconds, side="right") - 1
        choices: Choices = self._table[row, level, age_class + _CLASSES * seen.spot_available, seen.running]
        return choices

    def _fill(self, job: DeadlineJob, chances: NDArray[np.float64]) -> None:
        """Bellman's recursion. Costs are in steps of spot price; arrays are [slack level, phase]."""
        ratio = np.float32(job.on_demand_ratio)
        start = job.changeover_seconds / self._step  # steps a changeover takes
        start_steps = max(1, math.ceil(start - 1e-9))
        after_one = chances.T.astype(np.float32)
        after_start = np.linalg.matrix_power(chances, start_steps).T.astype(np.float32)
        slack = (np.arange(self._levels) / self._per_step)[:, None]  # in steps
        spot_gone = slice(0, _CLASSES)
        done = np.zeros((self._levels, 2 * _CLASSES), dtype=np.float32)
        past = [(done, done, done)]  # cost to go holding (nothing, spot, on-demand), latest last

        for left in range(1, len(self._table)):
            idle_next, spot_next, on_demand_next = past[-1]
            work = np.clip(left - slack, 0, 1).astype(np.float32)  # the job may end within the step
            wait = self._lose(idle_next @ after_one, 1.0)
            stay_spot = work + spot_next @ after_one
            stay_on_demand = ratio * work + on_demand_next @ after_one
            if left >= start_steps:
                _, spot_later, on_demand_later = past[-start_steps]
                busy = np.clip(left - slack + start, 0, start_steps).astype(np.float32)
                start_spot = busy + self._lose(spot_later @ after_start, start)
                start_on_demand = ratio * busy + self._lose(on_demand_later @ after_start, start)
            else:
                start_spot = start_on_demand = np.full_like(wait, _FORBIDDEN)
            stay_spot[:, spot_gone] = _FORBIDDEN
            start_spot = start_spot.copy()
            start_spot[:, spot_gone] = _FORBIDDEN

            values = []
            for held, options in (
                (WAIT, (wait, start_spot, start_on_demand)),
                (SPOT, (wait, stay_spot, start_on_demand)),
                (ON_DEMAND, (wait, start_spot, stay_on_demand)),
            ):
                costs = np.stack(options)  # in the order WAIT, SPOT, ON_DEMAND
                self._table[left, :, :, held] = costs.argmin(axis=0)
                values.append(np.where(slack >= left, np.float32(0), np.minimum(costs.min(axis=0), _FORBIDDEN)))
            values[SPOT][:, spot_gone] = values[WAIT][:, spot_gone]  # a spot machine that was taken is no machine
            past = [*past[-start_steps:], (values[WAIT], values[SPOT], values[ON_DEMAND])]

    def _lose(self, cost: Array, steps: float) -> Array:
        """Cost to go after losing that many steps of slack, interpolated between levels."""
        levels = steps * self._per_step
        whole = math.floor(levels)
        part = np.float32(levels - whole)
        return (1 - part) * _shift(cost, whole) + part * _shift(cost, whole + 1)


def _shift(cost: Array, levels: int) -> Array:
    if levels == 0:
        return cost
    shifted = np.full_like(cost, _FORBIDDEN)
    shifted[levels:] = cost[:-levels]
    return shifted
