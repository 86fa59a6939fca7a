"""Which values a trial gets: a function of the space, the seed, the trial's number, and what was learned before it.

    grid     every combination, in an order shuffled by the seed
    random   drawn for each number, whatever the others gave; no combination twice while there are other ones
    tpe      the tree-structured Parzen estimator (Bergstra et al. 2011) of Optuna: drawn where good trials are dense

The draws are Optuna's. Its study is made for one question and thrown away: nothing that must survive lives in it.
"""

from __future__ import annotations

import hashlib
import math
import random
import warnings
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from crucible.errors import ConfigError
from crucible.sweeps.searchable import Value, Values
from crucible.sweeps.space import Dimension, Space
from crucible.tune_config import SamplerName

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial, Trial

RANDOM_FIRST = 10
"""Trials that TPE draws at random before it begins to learn."""


@dataclass(frozen=True)
class Seen:
    """What is known of an earlier trial when a new one is drawn."""

    values: Values
    step: int
    """The last rung at which it was measured; 0 before the first."""
    loss: float | None
    """Validation loss there; None while unknown, NaN for a trial that failed."""
    complete: bool
    """Whether it was trained to the end."""


class Sampler(Protocol):
    """Draws trials; must give the same values for the same question."""

    def suggest(self, number: int, seen: Sequence[Seen]) -> Values:
        """The values of trial `number` (from 1), given the trials 1 to `number` - 1."""


def make_sampler(name: SamplerName, space: Space, seed: int) -> Sampler:
    """The sampler of that name. Raises `ConfigError` for a grid of a space that has none."""
    match name:
        case "grid":
            return Grid(space, seed)
        case "random":
            return Random(space, seed)
        case "tpe":
            return Tpe(space, seed)


class Grid:
    """Shuffled, because successive halving compares trials with those that came before them: a sweep whose learning
    rate only rises would promote nearly all."""

    def __init__(self, space: Space, seed: int) -> None:
        self.points = space.grid()
        random.Random(seed).shuffle(self.points)

    def suggest(self, number: int, seen: Sequence[Seen]) -> Values:
        return self.points[number - 1]


class Random:
    """Where all combinations can be listed, each is drawn once before any is drawn again: a trial alike costs as much
    as another one, and shows nothing."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.seed = space, seed
        self.points: list[Values] = []
        with suppress(ConfigError):  # a range of floats, or too many
            self.points = Grid(space, seed).points

    def suggest(self, number: int, seen: Sequence[Seen]) -> Values:
        if number <= len(self.points):
            return self.points[number - 1]
        from optuna.samplers import RandomSampler

        return _ask(self.space, RandomSampler(seed=_seed(self.seed, number)), [])


class Tpe:
    """Trials that wait at a rung count as pruned there, running ones as bad, so that no two are drawn alike."""

    def __init__(self, space: Space, seed: int) -> None:
        self.space, self.seed = space, seed

    def suggest(self, number: int, seen: Sequence[Seen]) -> Values:
        from optuna.exceptions import ExperimentalWarning
        from optuna.samplers import TPESampler

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            sampler = TPESampler(seed=_seed(self.seed, number), n_startup_trials=RANDOM_FIRST, constant_liar=True)
        return _ask(self.space, sampler, [_frozen(self.space, trial) for trial in seen])


def _seed(seed: int, number: int) -> int:
    digest = hashlib.sha256(f"{seed}/{number}".encode()).digest()
    return int.from_bytes(digest[:4], "big")


def _ask(space: Space, sampler: Any, earlier: Sequence[FrozenTrial]) -> Values:
    import optuna

    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = optuna.create_study(sampler=sampler)
    study.add_trials(earlier)
    trial = study.ask()
    values: Values = {}
    for dimension in space.dimensions:
        if dimension.active(values):
            values[dimension.name] = _suggest(trial, dimension)
    return values


def _suggest(trial: Trial, dimension: Dimension) -> Value:
    name = dimension.name
    match dimension.kind:
        case "choice":
            chosen: Value = trial.suggest_categorical(name, dimension.values)
            return chosen
        case "int":
            return int(trial.suggest_int(name, int(dimension.low), int(dimension.high)))
        case kind:
            return float(trial.suggest_float(name, dimension.low, dimension.high, log=kind == "loguniform"))


def _distribution(dimension: Dimension) -> BaseDistribution:
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    match dimension.kind:
        case "choice":
            return CategoricalDistribution(dimension.values)
        case "int":
            return IntDistribution(int(dimension.low), int(dimension.high))
        case kind:
            return FloatDistribution(dimension.low, dimension.high, log=kind == "loguniform")


def _frozen(space: Space, seen: Seen) -> FrozenTrial:
    from optuna.trial import TrialState, create_trial

    distributions = {d.name: _distribution(d) for d in space.dimensions if d.name in seen.values}
    arguments: dict[str, Any] = {"params": dict(seen.values), "distributions": distributions}
    if seen.loss is None:
        return create_trial(state=TrialState.RUNNING, **arguments)
    if seen.complete and math.isfinite(seen.loss):
        return create_trial(state=TrialState.COMPLETE, value=seen.loss, **arguments)
    # A failed trial is a pruned one with NaN, the worst there is: left out, it would be drawn again and again.
    return create_trial(state=TrialState.PRUNED, intermediate_values={seen.step: seen.loss}, **arguments)
