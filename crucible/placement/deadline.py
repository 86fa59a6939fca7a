"""The placement policy of a job with a deadline: at every tick spot, on-demand or waiting, as `lookahead` decides.

Everything it needs comes from the records: the work left from the steps left and the measured speed (before that, the
estimate's), and whether spot is available from what happened to the attempts on it. Waiting is an attempt on the spot
pool that no machine has taken up yet: it costs nothing, and starts as soon as there is a machine.

    waiting, no spot           a launch on spot stays in the queue
    on spot                    stays until interrupted; leaves early only when too little time is left to recover
    on-demand                  goes back to spot, or to waiting, when the capacity probe saw spot and it pays
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime

from crucible.formatting import rough_duration
from crucible.jobs.records import now
from crucible.placement.lookahead import lookahead
from crucible.placement.policies import CHOICE_NAMES, ON_DEMAND, SPOT, WAIT, DeadlineJob, Rule, decide_once
from crucible.supervision.retry_policy import Decision, Placement
from crucible.supervision.snapshot import AttemptView

DETECTION_SECONDS = 120.0
"""Until a vanished machine is detected and the steps since its last commit are repeated."""
MARGIN = 1.05
"""The rest of the work is assumed to be this much slower than the work so far."""
NEW_SPEED = 0.1
"""Plan again when the measured speed is off the planned one by more than this share."""
ON_DEMAND_TIMEOUT_SECONDS = 900.0
TICK_SECONDS = 60.0
LAUNCHES_PER_PLACE = 3


@dataclass(frozen=True)
class _Plan:
    """The rest of the job as of `began`."""

    rule: Rule
    began: datetime
    first_step: int
    seconds_per_step: float


@dataclass
class DeadlinePolicy:
    """Meets `finish_by`, on spot as long as possible; implements `PlacementPolicy`.

    `spot` and `steady` are indices into `places`; `seconds_per_step` is the estimate's, until speed is measured;
    `capacity` says whether a spot machine is available (None: unknown), and is called only while none is held.
    """

    places: Sequence[Placement]
    spot: int
    steady: int
    finish_by: datetime
    total_steps: int
    seconds_per_step: float
    first_step: int = 0
    """Saved before the first of the attempts that this policy sees."""
    report_steps: int = 1
    """Steps between two reports of the workload."""
    capacity: Callable[[], bool | None] = lambda: None
    clock: Callable[[], datetime] = now
    _plan: _Plan | None = field(default=None, init=False)
    _probed: list[tuple[datetime, bool]] = field(default_factory=list, init=False)

    @property
    def waits_for(self) -> frozenset[str]:
        return frozenset({self._spot_pool})

    def next(self, attempts: Sequence[AttemptView], decision: Decision) -> Decision:
        moment = self.clock()
        choice = self._choice(attempts, moment)
        place = self.spot if choice != ON_DEMAND else self._steady_place(attempts)
        what = "waits for spot" if choice == WAIT else f"on {CHOICE_NAMES[choice]}"
        last = attempts[-1].ended if attempts else None
        before = (
            "" if last and (last.missed or last.moved) else f"; {decision.reason}"
        )  # these two give their own reason
        return replace(decision, placement=place, reason=f"{what}: {self._figures(attempts, moment)}{before}")

    def why_leave(self, attempts: Sequence[AttemptView]) -> str | None:
        moment, live = self.clock(), attempts[-1]
        waited = (moment - live.launched_at).total_seconds()
        on_spot = live.pool == self._spot_pool
        if not live.claimed and not on_spot:
            if waited <= ON_DEMAND_TIMEOUT_SECONDS:
                return None
            return f"no machine of {live.pool} took it up within {rough_duration(ON_DEMAND_TIMEOUT_SECONDS / 3600)}"
        if live.claimed and waited < self._boot and live.seconds_per_step(self.report_steps) is None:
            return None  # give a new attempt the time to show its speed
        choice = self._choice(attempts, moment)
        if on_spot and choice == ON_DEMAND:
            none = "" if live.claimed else f"no spot machine for {rough_duration(waited / 3600)}; "
            return f"{none}moved to on-demand: {self._figures(attempts, moment)}"
        if not on_spot and choice != ON_DEMAND:
            back = "moved back to spot" if choice == SPOT else "left on-demand to wait for spot"
            return f"{back}: {self._figures(attempts, moment)}"
        return None

    @property
    def _spot_pool(self) -> str:
        return self.places[self.spot].pool

    def _choice(self, attempts: Sequence[AttemptView], moment: datetime) -> int:
        refused = {entry.pool for entry in attempts if entry.ended and entry.ended.refused}
        time_left = (self.finish_by - moment).total_seconds()
        if time_left <= 0 or self._spot_pool in refused:
            return ON_DEMAND
        if self.total_steps <= self._step(attempts):
            return SPOT
        plan = self._planned(attempts, moment)
        running, available, age = self._spot_now(attempts, moment)
        done = (self._step(attempts) - plan.first_step) * plan.seconds_per_step
        if running == SPOT and self._last_chance(attempts, time_left):
            return ON_DEMAND
        return decide_once(plan.rule, (moment - plan.began).total_seconds(), done, running, available, age)

    def _last_chance(self, attempts: Sequence[AttemptView], time_left: float) -> bool:
        """Whether this is the last moment at which losing the spot machine could still be recovered from on-demand.

        `lookahead` starts spot only with slack to spare, so this happens only to a job that turns out slower than
        planned. Past that moment, or near the end, staying is the better bet. A machine that has not started yet gets
        no such credit: `lookahead` does not model booting and counts it as held.
        """
        work_left, changeover = self._work_left(attempts), self._changeover
        slack = time_left - work_left
        if not attempts[-1].claimed:
            return slack < changeover + TICK_SECONDS
        return changeover <= slack < 1.5 * changeover and work_left > changeover

    def _planned(self, attempts: Sequence[AttemptView], moment: datetime) -> _Plan:
        pace = self._pace(attempts)
        plan = self._plan
        if plan is None or abs(pace / plan.seconds_per_step - 1) > NEW_SPEED:
            step = self._step(attempts)
            job = DeadlineJob(
                work_seconds=pace * (self.total_steps - step),
                deadline_seconds=(self.finish_by - moment).total_seconds(),
                changeover_seconds=self._changeover,
                on_demand_ratio=self.places[self.steady].usd_per_hour / self.places[self.spot].usd_per_hour,
                tick_seconds=TICK_SECONDS,
            )
            plan = self._plan = _Plan(lookahead(job), moment, step, pace)
        return plan

    @property
    def _changeover(self) -> float:
        return max(self.places[self.spot].startup_seconds, self.places[self.steady].startup_seconds) + DETECTION_SECONDS

    @property
    def _boot(self) -> float:
        """Seconds within which an available machine has started."""
        return 2 * self.places[self.spot].startup_seconds + DETECTION_SECONDS

    def _pace(self, attempts: Sequence[AttemptView]) -> float:
        """Planned seconds per step: as last measured, else as estimated."""
        measured = next(
            (seconds for entry in reversed(attempts) if (seconds := entry.seconds_per_step(self.report_steps))), None
        )
        return MARGIN * (measured or self.seconds_per_step)

    def _step(self, attempts: Sequence[AttemptView]) -> int:
        """Saved, or reached by the running attempt."""
        steps = [self.first_step]
        for entry in attempts:
            record = entry.progress
            if record is not None:
                steps.append(record.committed_step if entry.ended else record.step)
        return max(steps)

    def _work_left(self, attempts: Sequence[AttemptView]) -> float:
        return self._pace(attempts) * (self.total_steps - self._step(attempts))

    def _spot_now(self, attempts: Sequence[AttemptView], moment: datetime) -> tuple[int, bool, float]:
        """The machine held, whether spot is available, and for how many seconds that has been so."""
        live = attempts[-1] if attempts and attempts[-1].ended is None else None
        seen: list[tuple[datetime, bool]] = []
        holds_spot = False
        for entry in attempts:
            if entry.pool != self._spot_pool:
                continue
            booting = entry is live and not entry.claimed and (moment - entry.launched_at).total_seconds() < self._boot
            missed = entry.ended.missed if entry.ended else not entry.claimed
            if not booting:
                seen.append((entry.launched_at, not missed))
            if entry.ended and entry.ended.taken_away:
                seen.append((entry.ended.outcome.ended_at, False))
            holds_spot = entry is live and (entry.claimed or booting)
        if holds_spot:
            return SPOT, True, self._age([*seen, *self._probed], moment) if live and live.claimed else 0.0
        known = self.capacity()
        if known is not None and (not self._probed or self._probed[-1][1] is not known):
            self._probed.append((moment, known))
        observed = sorted([*seen, *self._probed])
        available = observed[-1][1] if observed else True
        held = WAIT if live is None or live.pool == self._spot_pool else ON_DEMAND
        if held == WAIT and live is not None:
            available = False  # a machine would have taken the attempt up
        return held, available, self._age(observed, moment)

    @staticmethod
    def _age(seen: Sequence[tuple[datetime, bool]], moment: datetime) -> float:
        """Seconds for which spot has been in its latest state."""
        ordered = sorted(seen, reverse=True)
        same = list(itertools.takewhile(lambda entry: entry[1] == ordered[0][1], ordered))
        return max(0.0, (moment - same[-1][0]).total_seconds()) if same else 0.0

    def _steady_place(self, attempts: Sequence[AttemptView]) -> int:
        """On-demand, or if that does not start the attempt, the other places in turn."""
        others = [n for n, place in enumerate(self.places) if n != self.steady and place.pool != self._spot_pool]
        vain = list(itertools.takewhile(lambda entry: entry.ended and entry.ended.in_vain, reversed(attempts)))
        misses = sum(entry.pool != self._spot_pool for entry in vain)
        refused = {entry.pool for entry in attempts if entry.ended and entry.ended.refused}
        order = [n for n in (self.steady, *others) if self.places[n].pool not in refused] or [self.spot]
        return order[misses // LAUNCHES_PER_PLACE % len(order)]

    def _figures(self, attempts: Sequence[AttemptView], moment: datetime) -> str:
        left = rough_duration(self._work_left(attempts) / 3600)
        until = (self.finish_by - moment).total_seconds() / 3600
        if until <= 0:
            return f"{left} of work left, finish_by was {rough_duration(-until)} ago"
        return f"{left} of work left, {rough_duration(until)} until finish_by"
