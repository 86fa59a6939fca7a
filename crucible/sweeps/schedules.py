"""Which trial is trained next, and how far: successive halving and its relatives, by rungs.

A rung is a number of steps at which trials are compared; the last one is the whole training. A trial that is not
promoted waits at its rung with its checkpoint and can go on at any time, exactly.

    none        every trial is trained to the end
    asha        a free worker promotes a trial of the best 1/eta of a rung, else it begins a new one (Li et al. 2020,
                "A System for Massively Parallel Hyperparameter Tuning", algorithm 2)
    halving     a rung is promoted once all of its trials are there (Jamieson and Talwalkar 2016)
    hyperband   several such brackets, which begin with more short trials or fewer long ones (Li et al. 2018)

A schedule is asked whenever a worker is free and receives each result; it keeps no clock. Equal losses are ordered by
trial number, so the answers depend on the results alone.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Protocol

from crucible.errors import ConfigError
from crucible.tune_config import ScheduleName

FAILED = math.inf
"""The loss of a trial that failed: it competes, and loses."""


@dataclass(frozen=True, order=True)
class TrialRung:
    """The unit of work: train `trial` (from 1) to `rung` (from 0)."""

    trial: int
    rung: int


class Schedule(Protocol):
    """Decides what a free worker does. Receives every result, in the order in which they count."""

    def next(self, started: int, most: int, idle: bool) -> TrialRung | None:
        """The next trial rung, or None while there is nothing to do.

        `started` trials have been begun, `most` may be; `idle` when no worker is busy.
        """

    def record(self, target: TrialRung, loss: float) -> None:
        """The loss at a trial rung; `FAILED` for one that will never be reached."""


def ladder(max_iters: int, min_steps: int, eta: int) -> list[int]:
    """The rungs in steps: the whole budget divided by eta again and again, as long as that is `min_steps` or more.

    >>> ladder(900, 100, 3)
    [100, 300, 900]
    """
    if eta < 2:
        raise ConfigError(f"reduction_factor = {eta} must be 2 or more: one in so many trials goes on")
    if not 1 <= min_steps <= max_iters:
        raise ConfigError(f"min_steps = {min_steps} must lie between 1 and max_iters = {max_iters}")
    steps = [max_iters]
    while (below := round(steps[0] / eta)) >= min_steps and below < steps[0]:
        steps.insert(0, below)
    return steps


def make_schedule(name: ScheduleName, rungs: int, eta: int) -> Schedule:
    """The schedule of that name over so many rungs."""
    match name:
        case "none" | "asha":  # over a single rung there is nothing to promote
            return Asha(rungs, eta)
        case "halving":
            return Halving([Bracket(0, None)], rungs, eta)
        case "hyperband":
            return Halving(hyperband_brackets(rungs, eta), rungs, eta)


@dataclass
class Asha:
    """Asynchronous: nobody waits for a rung to fill, at the price of promoting some that would not have made it.

    Never more than 1/eta of a rung, though (the delay of D-ASHA in "Hyper-Tune", Li et al. 2022): whoever was promoted
    early and is overtaken keeps its place, and no other one is promoted in its stead until the rung has grown.
    """

    rungs: int
    eta: int
    results: list[dict[int, float]] = field(init=False)
    promoted: list[set[int]] = field(init=False)

    def __post_init__(self) -> None:
        self.results = [{} for _ in range(self.rungs)]
        self.promoted = [set() for _ in range(self.rungs)]

    def next(self, started: int, most: int, idle: bool) -> TrialRung | None:
        for rung in reversed(range(self.rungs - 1)):
            places = len(self.results[rung]) // self.eta
            if len(self.promoted[rung]) >= places:
                continue
            best = _ranked(self.results[rung])[:places]
            if promotable := [trial for trial in best if trial not in self.promoted[rung]]:
                return self._promote(promotable[0], rung)
        if started < most:
            return TrialRung(started + 1, 0)
        return self._finalist() if idle else None

    def record(self, target: TrialRung, loss: float) -> None:
        self.results[target.rung][target.trial] = loss

    def _promote(self, trial: int, rung: int) -> TrialRung:
        self.promoted[rung].add(trial)
        return TrialRung(trial, rung + 1)

    def _finalist(self) -> TrialRung | None:
        """With too few trials for a promotion, the best of the highest rung is still trained to the end."""
        highest = max((rung for rung in range(self.rungs) if _ranked(self.results[rung])), default=self.rungs)
        if highest >= self.rungs - 1:
            return None
        waiting = [trial for trial in _ranked(self.results[highest]) if trial not in self.promoted[highest]]
        return self._promote(waiting[0], highest) if waiting else None


@dataclass(frozen=True)
class Bracket:
    """So many trials (None: all there are) that begin at the same rung."""

    first_rung: int
    trials: int | None


def hyperband_brackets(rungs: int, eta: int) -> list[Bracket]:
    """From many short trials to few long ones: n = ceil(K / (s + 1) * eta^s) trials for s = K - 1 … 0, K the rungs.

    >>> [(bracket.first_rung, bracket.trials) for bracket in hyperband_brackets(3, 3)]
    [(0, 9), (1, 5), (2, 3)]
    """
    return [
        Bracket(rungs - 1 - s, -(-rungs * eta**s // (s + 1)))  # a ceiling without floating point
        for s in reversed(range(rungs))
    ]


@dataclass
class Halving:
    """Synchronous: the best 1/eta of a full rung go on, at least one. Brackets follow each other, again and again."""

    brackets: Sequence[Bracket]
    rungs: int
    eta: int
    _open: list[_Running] = field(default_factory=list)

    def next(self, started: int, most: int, idle: bool) -> TrialRung | None:
        for bracket in self._open:
            if (target := bracket.promotion(self.eta, self.rungs)) is not None:
                return target
        if started < most:
            return self._begin(started + 1, most)
        return None

    def record(self, target: TrialRung, loss: float) -> None:
        for bracket in self._open:
            if target.trial in bracket.members:
                bracket.results.setdefault(target.rung, {})[target.trial] = loss

    def _begin(self, trial: int, most: int) -> TrialRung:
        if not self._open or trial not in self._open[-1].members:
            shape = self.brackets[len(self._open) % len(self.brackets)]
            size = most if shape.trials is None else shape.trials
            self._open.append(_Running(shape.first_rung, range(trial, min(trial + size, most + 1))))
        return TrialRung(trial, self._open[-1].first_rung)


@dataclass
class _Running:
    """One bracket while it is worked on."""

    first_rung: int
    members: range
    results: dict[int, dict[int, float]] = field(default_factory=dict)
    promoted: dict[int, list[int]] = field(default_factory=dict)
    """Rung → the trials that go on from it, best first; as soon as they are begun they leave the list."""
    expected: dict[int, int] = field(default_factory=dict)

    def promotion(self, eta: int, rungs: int) -> TrialRung | None:
        for rung in reversed(range(self.first_rung, rungs - 1)):
            results = self.results.get(rung, {})
            if rung not in self.promoted and results and len(results) == self._size(rung):
                best = _ranked(results)[: max(1, len(results) // eta)]
                self.promoted[rung] = best
                self.expected[rung + 1] = len(best)
            if self.promoted.get(rung):
                return TrialRung(self.promoted[rung].pop(0), rung + 1)
        return None

    def _size(self, rung: int) -> int:
        return len(self.members) if rung == self.first_rung else self.expected.get(rung, 0)


def _ranked(results: dict[int, float]) -> list[int]:
    """The trials that did not fail, best first."""
    return sorted((t for t, loss in results.items() if loss != FAILED), key=lambda trial: (results[trial], trial))
