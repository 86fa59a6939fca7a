"""The checkpoint interval against a brute-force simulation of the thing it claims to minimise."""

from __future__ import annotations

import math
import random

import pytest

from crucible.errors import ConfigError
from crucible.intervals import IntervalPolicy, SaveCosts, checkpoint_interval_seconds, lost_share


def simulated_loss(interval: float, save: float, mtbf: float, restart: float, lives: int = 4000) -> float:
    """Share of time lost over many machine lives with exponential lifetimes: work since the last save is repeated."""
    rng = random.Random(7)
    useful = total = 0.0
    for _ in range(lives):
        life = rng.expovariate(1 / mtbf)
        useful += (life // interval) * (interval - save)
        total += life + restart
    return total / useful - 1


@pytest.mark.parametrize(("save", "mtbf"), [(0.5, 7200), (2.0, 4 * 3600), (15.0, 3600), (45.0, 7200)])
def test_no_other_interval_loses_clearly_less(save: float, mtbf: float) -> None:
    best = checkpoint_interval_seconds(save, mtbf, minimum=0.1, maximum=1e6)
    loss = simulated_loss(best, save, mtbf, restart=0)
    for factor in (0.4, 0.6, 1.6, 2.5):
        assert loss < simulated_loss(best * factor, save, mtbf, restart=0)


def test_lost_share_agrees_with_simulation() -> None:
    interval = checkpoint_interval_seconds(0.5, 7200)
    assert lost_share(interval, 0.5, 7200, restart_seconds=240) == pytest.approx(
        simulated_loss(interval, 0.5, 7200, restart=240), rel=0.15
    )


def test_a_working_notice_removes_the_rework_and_keeps_the_restart() -> None:
    assert lost_share(60, 0.0, 3600, durable_seconds=20, restart_seconds=36, notice_saves=1.0) == pytest.approx(0.01)


def test_bounds_and_extremes() -> None:
    assert checkpoint_interval_seconds(0.001, 3600, minimum=30) == 30
    assert checkpoint_interval_seconds(60, 1e9, maximum=900) == 900
    assert checkpoint_interval_seconds(1.0, math.inf, maximum=600) == 600
    assert checkpoint_interval_seconds(0.0, 3600, minimum=5) == 5
    # A save that takes longer than two lives: one save per life is all there is.
    assert checkpoint_interval_seconds(100, 40, maximum=1e6) == 140


@pytest.mark.parametrize(
    ("save_cost", "mtbf", "minimum", "maximum"),
    [(-1, 10, 1, 9), (1, 0, 1, 9), (math.nan, 10, 1, 9), (1, math.nan, 1, 9), (1, 10, 9, 3), (1, 10, 0, 9)],
)
def test_nonsense_is_refused_by_name(save_cost: float, mtbf: float, minimum: float, maximum: float) -> None:
    with pytest.raises(ConfigError, match=r"is .*: it must be"):
        checkpoint_interval_seconds(save_cost, mtbf, minimum, maximum)


def test_a_save_slower_than_its_interval_lengthens_it() -> None:
    costs = SaveCosts()
    assert IntervalPolicy(fixed_seconds=2.0).interval_seconds(costs) == 2
    costs.write_seconds.append(3.0)
    costs.upload_seconds.append(1.0)
    assert IntervalPolicy(fixed_seconds=2.0).interval_seconds(costs) == 6
    assert IntervalPolicy(fixed_seconds=5.0).interval_seconds(costs) == 5
