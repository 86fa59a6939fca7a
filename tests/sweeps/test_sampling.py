"""Draws depend on the seed, the number and what was seen, and on nothing else."""

from __future__ import annotations

import math

import pytest

from crucible.sweeps.sampling import Sampler, Seen, make_sampler
from crucible.sweeps.space import Space

SPACE = Space.parse(
    {
        "learning_rate": {"loguniform": [1e-4, 1e-2]},
        "dropout": {"uniform": [0.0, 0.5]},
        "n_layer": {"int": [1, 4]},
        "decay_lr": [True, False],
        "warmup_iters": {"choice": [5, 10], "when": {"decay_lr": True}},
    }
)


@pytest.fixture(params=["random", "tpe"])
def sampler(request: pytest.FixtureRequest) -> Sampler:
    return make_sampler(request.param, SPACE, seed=1)


def seen(sampler: Sampler, count: int, complete: bool = True) -> list[Seen]:
    found: list[Seen] = []
    for number in range(1, count + 1):
        values = sampler.suggest(number, found)
        found.append(Seen(values, 100, abs(math.log10(values["learning_rate"]) + 3), complete))  # type: ignore[arg-type]
    return found


def test_draws_lie_in_the_space_and_respect_conditions(sampler: Sampler) -> None:
    for trial in seen(sampler, 15):
        assert 1e-4 <= trial.values["learning_rate"] <= 1e-2  # type: ignore[operator]
        assert isinstance(trial.values["n_layer"], int)
        assert ("warmup_iters" in trial.values) == trial.values["decay_lr"]


def test_the_same_question_has_the_same_answer(sampler: Sampler) -> None:
    assert seen(sampler, 14) == seen(sampler, 14)
    assert sampler.suggest(15, seen(sampler, 14)) != sampler.suggest(16, seen(sampler, 14))


def test_another_seed_gives_another_search() -> None:
    assert make_sampler("random", SPACE, 1).suggest(1, []) != make_sampler("random", SPACE, 2).suggest(1, [])


def test_random_draws_no_combination_twice_while_there_are_others() -> None:
    space = Space.parse({"n_layer": {"int": [1, 3]}, "n_embd": [32, 64], "decay_lr": [True, False]})
    drawn = [make_sampler("random", space, 1).suggest(number, []) for number in range(1, 16)]
    assert sorted(map(str, drawn[:12])) == sorted(map(str, space.grid()))
    assert all(values in space.grid() for values in drawn[12:])
    assert drawn[:12] != [make_sampler("random", space, 2).suggest(number, []) for number in range(1, 13)]


@pytest.mark.parametrize("complete", [True, False], ids=["complete", "waiting at a rung"])
def test_tpe_draws_where_good_trials_are(complete: bool) -> None:
    rates = [trial.values["learning_rate"] for trial in seen(make_sampler("tpe", SPACE, 3), 40, complete)]
    far = [abs(math.log10(rate) + 3) for rate in rates]  # type: ignore[arg-type]
    assert sum(far[30:]) < 0.7 * sum(far[:10])


def test_tpe_avoids_failures_and_heeds_trials_that_run() -> None:
    tpe = make_sampler("tpe", SPACE, 5)
    good = seen(tpe, 12)
    failed = [Seen({**trial.values, "dropout": 0.4}, 100, math.nan, False) for trial in good[:4]]
    running = [Seen(good[0].values, 0, None, False)]
    assert tpe.suggest(20, good + failed + running) != tpe.suggest(20, good)
