"""What a sweep does next: a function of its spec and of the results so far, whatever the order they arrived in.

Real trials finish in whatever order machines, kills and restarts make of it. Decisions are therefore made in a
simulation: virtual workers train the sweep, for whom training lasts as long as it has FLOPs. The simulation stops at
the first virtual end whose real result is not there yet, and goes on when it is. So the same results always lead to the
same decisions, a sweep that was killed and simulated again makes those it would have made, and nothing about decisions
needs to be kept.

Real workers need not idle while the simulation waits. Where trials are drawn without regard to results, every one of
them will be begun sooner or later, so the next ones may be begun ahead of their time. TPE does regard results; there
are twice as many virtual workers as real ones, so that other work is there. And where no decision depends on a result
at all (no rungs, or full ones), there are as many virtual workers as there is work.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from crucible.sweeps.sampling import Sampler, Seen
from crucible.sweeps.schedules import FAILED, Schedule, TrialRung
from crucible.sweeps.searchable import Values

AHEAD = 2
"""Virtual workers for each real one."""
START = 0.5
"""What it takes to start training towards a rung, as a share of the first rung with the base configuration."""

Results = Mapping[TrialRung, float]
"""The validation loss at every trial rung that was reached, `FAILED` where it never will be."""


@dataclass
class Planner:
    """Simulates a sweep; `work` returns what remains to be trained, given all results so far."""

    schedule: Schedule
    sampler: Sampler
    ladder: list[int]
    """The rungs, in steps."""
    max_trials: int
    workers: int | None
    """Virtual workers; None: as many as there is work for."""
    step_cost: Callable[[Values], float]
    """How long a step of a trial with these values lasts in virtual time."""
    start_cost: float = 0.0
    """How long it takes to start training, in the same unit."""
    ahead: int = 0
    """How many trials may be begun ahead of their time; 0 where drawing them depends on results."""
    known: dict[int, Values] = field(default_factory=dict)
    """Values of the trials that were drawn before; the others are drawn when they begin."""

    trials: dict[int, Values] = field(init=False, default_factory=dict)
    """Every trial that has begun so far."""
    _reached: dict[int, int] = field(init=False, default_factory=dict)
    """Trial → the highest rung it was measured at, in virtual time."""
    _losses: dict[int, float] = field(init=False, default_factory=dict)
    _busy: list[tuple[float, int, TrialRung]] = field(init=False, default_factory=list)
    _clock: float = field(init=False, default=0.0)
    _begun: int = field(init=False, default=0)

    def work(self, results: Results) -> list[TrialRung]:
        """The trial rungs to train to now, in order of urgency; empty when the sweep is done.

        Call it again with more results; those given before must not change.
        """
        while True:
            self._keep_busy()
            if not self._busy:
                return []
            end, _, target = self._busy[0]
            if (loss := results.get(target)) is None:
                waiting = [target for _, _, target in sorted(self._busy, key=lambda busy: busy[1])]
                return sorted((p for p in waiting if p not in results), key=lambda p: -p.rung) + self._early(results)
            heapq.heappop(self._busy)
            self._clock = end
            self._reached[target.trial] = target.rung
            self._losses[target.trial] = loss
            self.schedule.record(target, loss)

    def values(self, trial: int) -> Values:
        """The values of a trial that there is work for."""
        return self.trials.get(trial) or self.known[trial]

    def _early(self, results: Results) -> list[TrialRung]:
        early: list[TrialRung] = []
        for trial in range(len(self.trials) + 1, self.max_trials + 1):
            if len(early) == self.ahead:
                break
            if (target := TrialRung(trial, 0)) not in results:
                self.known[trial] = self.known.get(trial) or self.sampler.suggest(trial, [])
                early.append(target)
        return early

    def _keep_busy(self) -> None:
        while self.workers is None or len(self._busy) < self.workers:
            target = self.schedule.next(len(self.trials), self.max_trials, idle=not self._busy)
            if target is None:
                return
            if target.trial not in self.trials:
                self.trials[target.trial] = self.known.get(target.trial) or self._draw(target.trial)
            self._begun += 1
            heapq.heappush(self._busy, (self._clock + self._duration(target), self._begun, target))

    def _draw(self, number: int) -> Values:
        return self.sampler.suggest(number, [self._seen(trial) for trial in sorted(self.trials)])

    def _seen(self, trial: int) -> Seen:
        rung, loss = self._reached.get(trial), self._losses.get(trial)
        return Seen(
            values=self.trials[trial],
            step=0 if rung is None else self.ladder[rung],
            loss=math.nan if loss == FAILED else loss,
            complete=rung == len(self.ladder) - 1,
        )

    def _duration(self, target: TrialRung) -> float:
        reached = self._reached.get(target.trial)
        steps = self.ladder[target.rung] - (0 if reached is None else self.ladder[reached])
        return self.start_cost + steps * self.step_cost(self.trials[target.trial])
