"""When to use spot, on-demand or wait, for a job with a deadline: the interface and published policies.

A policy maps a job to a rule, and a rule is a pure function from what has been observed so far to a choice:

    rule = uniform_progress(job)
    choices = rule(seen)              # one choice per run, WAIT, SPOT or ON_DEMAND

`Seen` holds the past and the present only, so no rule can look ahead. All its per-run fields are arrays, so that one
call decides for thousands of simulated runs; a live job is the case of one run (`decide_once`).

The model is that of the paper behind Uniform Progress: one machine at a time; spot may or may not be available at every
tick; starting any machine takes the changeover time, paid and without progress (start-up, restore); work done is never
lost.

Wu, Chiang, Mao, Yang, Friedman, Shenker, Stoica: "Can't Be Late: Optimizing Spot Instance Savings under Deadlines",
NSDI 2024.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import numpy as np
from numpy.typing import NDArray

from crucible.errors import ConfigError

WAIT: Final = 0
SPOT: Final = 1
ON_DEMAND: Final = 2
CHOICE_NAMES: Final = ("wait", "spot", "on-demand")

Choices = NDArray[np.int8]

# Times are sums of ticks in floating point: comparisons allow this much, far below any tick.
_SECOND_FRACTION = 1e-6


@dataclass(frozen=True)
class DeadlineJob:
    """The work and its deadline, all times in seconds from the start of the job.

    `on_demand_ratio` is the on-demand price over the spot price; `tick_seconds` the time between two decisions.
    """

    work_seconds: float
    deadline_seconds: float
    changeover_seconds: float
    on_demand_ratio: float
    tick_seconds: float

    def __post_init__(self) -> None:
        for field in ("work_seconds", "deadline_seconds", "tick_seconds", "on_demand_ratio"):
            if not 0 < getattr(self, field) < np.inf:
                raise ConfigError(f"{field} is {getattr(self, field)}: it must be a number > 0")
        if not 0 <= self.changeover_seconds < np.inf:
            raise ConfigError(f"changeover_seconds is {self.changeover_seconds}: it must be a number >= 0")

    @property
    def feasible(self) -> bool:
        """Whether on-demand from the first second on would be in time."""
        return self.work_seconds + self.changeover_seconds <= self.deadline_seconds + _SECOND_FRACTION


@dataclass(frozen=True)
class Seen:
    """What a policy may know at a tick (past and present only). Arrays have one entry per run.

    `running` is what the run holds as the tick begins (a spot machine that was just interrupted counts as WAIT);
    `state_age_seconds` how long spot has been in its present state, available or not, as far as the run has seen.
    """

    elapsed_seconds: float
    done_seconds: NDArray[np.float64]
    running: Choices
    spot_available: NDArray[np.bool_]
    state_age_seconds: NDArray[np.float64]


Rule = Callable[[Seen], Choices]
Policy = Callable[[DeadlineJob], Rule]


def slack_seconds(job: DeadlineJob, seen: Seen) -> NDArray[np.float64]:
    """Time that may still be lost: time left minus work left. Working keeps it, waiting and changeovers eat it."""
    return job.deadline_seconds - seen.elapsed_seconds - (job.work_seconds - seen.done_seconds)


def never_late(job: DeadlineJob, seen: Seen, wanted: Choices) -> Choices:
    """Replace every choice after which on-demand could no longer make the deadline.

    Waiting costs one tick of slack and starting a spot machine one changeover; afterwards one more changeover, to
    on-demand, must still fit. Staying on a running machine costs none. This alone makes a policy keep every feasible
    deadline, whatever the rest of it does.
    """
    slack = slack_seconds(job, seen)
    reserve = job.changeover_seconds - _SECOND_FRACTION
    keep_or_on_demand = np.where((seen.running == SPOT) & seen.spot_available, SPOT, ON_DEMAND)
    choice = np.where((wanted == WAIT) & (slack - job.tick_seconds < reserve), keep_or_on_demand, wanted)
    starts_spot = (choice == SPOT) & (seen.running != SPOT)
    late_spot = starts_spot & (slack - job.changeover_seconds < reserve)
    return np.where(late_spot, ON_DEMAND, choice).astype(np.int8)


def on_demand(job: DeadlineJob) -> Rule:
    """On-demand from the start: never late, never cheap."""
    return lambda seen: np.full(seen.running.shape, ON_DEMAND, dtype=np.int8)


def greedy(job: DeadlineJob) -> Rule:
    """Spot whenever there is some, otherwise wait; on-demand only when the deadline forces it, then to the end."""

    def rule(seen: Seen) -> Choices:
        wanted = np.where(seen.spot_available, SPOT, WAIT)
        return never_late(job, seen, np.where(seen.running == ON_DEMAND, ON_DEMAND, wanted).astype(np.int8))

    return rule


def uniform_progress(job: DeadlineJob) -> Rule:
    """Uniform Progress (Wu et al., NSDI 2024, section 4): keep progress proportional to time.

    With expected progress ep(t) = t * work / deadline and changeover d:
    1. idle and behind ep(t): go on-demand to catch up;
    2. take risks: move to spot whenever there is some, also when behind, and stay until it is taken;
    3. hysteresis: from on-demand go back to waiting only when ahead of ep(t + 2d);
    4. safety net: on-demand when nothing else meets the deadline.

    Where the rules can be read in two ways (does 3 hold back the move of 2?), this is the cheaper reading on the public
    traces, so that whatever is compared with it is compared with the policy at its best.
    """
    pace = job.work_seconds / job.deadline_seconds

    def rule(seen: Seen) -> Choices:
        behind = seen.done_seconds < seen.elapsed_seconds * pace
        barely_ahead = seen.done_seconds < (seen.elapsed_seconds + 2 * job.changeover_seconds) * pace
        catch_up = behind | (barely_ahead & (seen.running == ON_DEMAND))
        wanted = np.where(seen.spot_available, SPOT, np.where(catch_up, ON_DEMAND, WAIT))
        return never_late(job, seen, wanted.astype(np.int8))

    return rule


def decide_once(
    rule: Rule,
    elapsed_seconds: float,
    done_seconds: float,
    running: int,
    spot_available: bool,
    state_age_seconds: float,
) -> int:
    """One live decision: WAIT, SPOT or ON_DEMAND. The arguments are those of `Seen`, for a single run."""
    seen = Seen(
        elapsed_seconds=elapsed_seconds,
        done_seconds=np.array([done_seconds], dtype=np.float64),
        running=np.array([running if spot_available or running != SPOT else WAIT], dtype=np.int8),
        spot_available=np.array([spot_available]),
        state_age_seconds=np.array([state_age_seconds], dtype=np.float64),
    )
    return int(rule(seen)[0])
