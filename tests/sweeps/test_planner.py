"""Decisions of a sweep as a function of its results: whoever finishes first, whoever is killed, the same ones."""

from __future__ import annotations

import math
import random
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from crucible.errors import ConfigError
from crucible.store import store_at
from crucible.sweeps import SweepLimits
from crucible.sweeps.planner import Planner
from crucible.sweeps.sampling import make_sampler
from crucible.sweeps.schedules import FAILED, TrialRung, hyperband_brackets, ladder, make_schedule
from crucible.sweeps.space import Space, Values
from tests.sweeps.carry_out import new_sweep

SPACE = Space.parse(
    {"learning_rate": {"loguniform": [1e-4, 1e-2]}, "n_embd": [32, 64, 128], "n_layer": {"int": [1, 4]}}
)
GRID = Space.parse({"learning_rate": [1e-4, 1e-3, 1e-2], "n_embd": [32, 64, 128], "dropout": [0.0, 0.1, 0.2]})


def loss_of(values: Values, target: TrialRung) -> float:
    """A loss that improves from rung to rung; the smallest rates fail."""
    rate = float(values["learning_rate"])  # type: ignore[arg-type]
    if rate < 2e-4 and target.rung > 0:
        return FAILED
    width = float(values.get("n_embd", 64))  # type: ignore[arg-type]
    return abs(math.log10(rate) + 3) + 10 / width + 1 / (1 + target.rung)


def planner(schedule: str, sampler: str, trials: int = 20, workers: int | None = 4, **fields: object) -> Planner:
    space = GRID if sampler == "grid" else SPACE
    rungs = [900] if schedule == "none" else ladder(900, 100, 3)
    return Planner(
        schedule=make_schedule(schedule, len(rungs), 3),  # type: ignore[arg-type]
        sampler=make_sampler(sampler, space, seed=7),  # type: ignore[arg-type]
        ladder=rungs,
        max_trials=trials,
        workers=workers,
        step_cost=lambda values: float(values["n_embd"]),  # type: ignore[arg-type]
        start_cost=10.0,
        ahead=0 if sampler == "tpe" or schedule != "asha" else 3,
        **fields,  # type: ignore[arg-type]
    )


def play(plan: Planner, choose: Callable[[list[TrialRung]], int], slots: int = 2) -> dict[TrialRung, float]:
    """Train what the planner wants, `slots` at a time; `choose` says which of the running targets ends next."""
    results: dict[TrialRung, float] = {}
    running: list[TrialRung] = []
    while work := plan.work(results):
        running += [target for target in work if target not in running][: slots - len(running)]
        target = running.pop(choose(running))
        results[target] = loss_of(plan.values(target.trial), target)
    assert not running
    return results


@pytest.mark.parametrize("sampler", ["grid", "random", "tpe"])
@pytest.mark.parametrize("schedule", ["none", "asha", "halving", "hyperband"])
@settings(max_examples=6, deadline=None)
@given(order=st.randoms(use_true_random=False))
def test_the_order_in_which_results_arrive_decides_nothing(schedule: str, sampler: str, order: random.Random) -> None:
    undisturbed = planner(schedule, sampler)
    expected = play(undisturbed, lambda running: 0)
    shuffled = planner(schedule, sampler)

    assert play(shuffled, lambda running: order.randrange(len(running)), slots=order.randint(1, 5)) == expected
    assert shuffled.trials == undisturbed.trials


@settings(max_examples=15, deadline=None)
@given(order=st.randoms(use_true_random=False), sampler=st.sampled_from(["tpe", "random"]))
def test_a_sweep_played_again_from_its_records_goes_on_as_if_never_killed(order: random.Random, sampler: str) -> None:
    undisturbed = planner("asha", sampler)
    expected = play(undisturbed, lambda running: 0)
    results: dict[TrialRung, float] = {}
    known: dict[int, Values] = {}
    done = False
    while not done:  # killed after every few results; what a trial draws is on record as soon as it begins
        plan = planner("asha", sampler, known=dict(known))
        for _ in range(order.randint(1, 6)):
            work = plan.work(results)
            known |= plan.trials | plan.known
            if done := not work:
                break
            target = order.choice(work)
            results[target] = loss_of(plan.values(target.trial), target)
    assert results == expected


def test_values_on_record_are_not_drawn_again() -> None:
    other = {"learning_rate": 0.005, "n_embd": 32, "n_layer": 3}
    plan = planner("none", "random", trials=2, known={1: other})
    plan.work({})
    assert plan.trials[1] == other


def test_asha_promotes_a_third_of_each_rung_and_trains_the_grids_best_to_the_end() -> None:
    plan = planner("asha", "grid", trials=27)
    results = play(plan, lambda running: 0)
    assert [sum(target.rung == rung for target in results) for rung in range(3)] == [27, 9, 3]
    best = min((loss_of(values, TrialRung(trial, 2)), trial) for trial, values in plan.trials.items())[1]
    assert TrialRung(best, 2) in results


@pytest.mark.parametrize("schedule", ["asha", "halving"])
def test_a_rung_that_nobody_passes_still_sends_its_best_to_the_end(schedule: str) -> None:
    plan = planner(schedule, "random", trials=2)
    results = play(plan, lambda running: 0)
    assert max(target.rung for target in results) == 2


@pytest.mark.parametrize("schedule", ["none", "asha", "halving", "hyperband"])
def test_a_sweep_of_failures_ends(schedule: str) -> None:
    plan = planner(schedule, "random", trials=9)
    results: dict[TrialRung, float] = {}
    while work := plan.work(results):
        results[work[0]] = FAILED
    assert len(results) == 9


def test_halving_promotes_the_best_third_of_a_full_rung() -> None:
    plan = planner("halving", "random", trials=9, workers=None)
    results: dict[TrialRung, float] = {target: float(target.trial) for target in plan.work({})[:8]}
    assert plan.work(results) == [TrialRung(9, 0)]
    results[TrialRung(9, 0)] = 0.5
    assert plan.work(results) == [TrialRung(9, 1), TrialRung(1, 1), TrialRung(2, 1)]


def test_nothing_waits_where_no_decision_depends_on_a_result() -> None:
    assert len(planner("none", "random", trials=20, workers=None).work({})) == 20


def test_promotions_come_before_new_trials() -> None:
    plan = planner("asha", "tpe", workers=4)
    results = {target: float(target.trial) for target in plan.work({})}
    first, *others = plan.work(results)
    assert first.rung == 1
    assert others
    assert all(target.rung == 0 for target in others)


def test_while_the_play_waits_trials_that_come_anyway_are_begun() -> None:
    plan = planner("asha", "random", workers=4)
    waiting = plan.work({})
    assert waiting == [TrialRung(trial, 0) for trial in range(1, 8)]
    early = dict.fromkeys(waiting[4:], 1.0)
    assert plan.work(early) == [*waiting[:4], TrialRung(8, 0), TrialRung(9, 0), TrialRung(10, 0)]


def test_raising_the_number_of_trials_changes_none_that_were_begun() -> None:
    few, many = planner("asha", "tpe", trials=12), planner("asha", "tpe", trials=20)
    play(few, lambda running: 0)
    play(many, lambda running: 0)
    assert {number: many.trials[number] for number in few.trials} == few.trials


def test_a_grid_ends_with_its_last_point_whatever_the_limit(tmp_path: Path) -> None:
    space = Space.parse({"learning_rate": [1e-3, 1e-2]}).as_json()
    sweep = new_sweep(store_at(tmp_path.as_uri()), "grid", trials=2, space=space, sampler="grid")
    sweep.set_limits(SweepLimits(max_trials=9))  # as `crucible sweeps limits` does while it runs
    assert len(play(sweep.planner(), lambda running: 0)) >= 2


def test_ladder() -> None:
    assert ladder(900, 100, 3) == [100, 300, 900]
    assert ladder(1000, 300, 3) == [333, 1000]
    assert ladder(10, 10, 2) == [10]
    with pytest.raises(ConfigError, match=r"min_steps = 20 .* max_iters = 10"):
        ladder(10, 20, 3)
    with pytest.raises(ConfigError, match="reduction_factor = 1"):
        ladder(10, 1, 1)


def test_hyperband_brackets_are_those_of_the_paper() -> None:
    assert [(b.first_rung, b.trials) for b in hyperband_brackets(5, 3)] == [(0, 81), (1, 34), (2, 15), (3, 8), (4, 5)]
