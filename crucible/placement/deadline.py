"""A live job with a deadline: at every tick spot, on-demand or waiting, as the look-ahead policy says.

What the policy asks for is told from the records: the work left from the steps left and the speed measured so far
(before that, the estimate's), and whether spot is there from what became of the attempts on it. Waiting is an attempt
on the spot pool that no machine has taken up yet: it costs nothing, and begins the moment there is one.

    waiting, spot gone         a launch on spot that is left in the queue
    on spot                    stays until taken away; leaves early only when time gets too short to recover from that
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
"""Until a machine that vanished is known to be gone, and what it did since its last commit is done again."""
MARGIN = 1.05
"""Work is assumed to take a little longer than it did so far."""
NEW_SPEED = 0.1
"""A measured speed that is so far off the planned one makes a new plan."""
STEADY_PATIENCE_SECONDS = 900.0
TICK_SECONDS = 60.0
TRIES_PER_PLACE = 3


@dataclass(frozen=True)
class _Plan:
    """The rest of the job as of `began`."""

    rule: Rule
    began: datetime
    first_step: int
    seconds_per_step: float


@dataclass
class DeadlineCourse:
    """Keeps to `finish_by`, on spot as long as it can. A `crucible.supervision.placement_policy.PlacementPolicy`.

    `spot` and `steady` are indices into `places`; `seconds_per_step` is the estimate's, until speed is measured;
    `capacity` says whether a spot machine is to be had (None: nobody knows), and is asked only while none is held.
    """

    places: Sequence[Placement]
    spot: int
    steady: int
    finish_by: datetime
    total_steps: int
    seconds_per_step: float
    first_step: int = 0
    """Saved before the first of the tries that this course gets to see."""
    report_steps: int = 1
    """Between two reports of the workload."""
    capacity: Callable[[], bool | None] = lambda: None
    clock: Callable[[], datetime] = now
    _plan: _Plan | None = field(default=None, init=False)
    _probed: list[tuple[datetime, bool]] = field(default_factory=list, init=False)

    @property
    def waits_for(self) -> frozenset[str]:
        return frozenset({self._spot_pool})

    def next(self, tries: Sequence[AttemptView], decision: Decision) -> Decision:
        moment = self.clock()
        choice = self._choice(tries, moment)
        place = self.spot if choice != ON_DEMAND else self._steady_place(tries)
        what = "waits for spot" if choice == WAIT else f"on {CHOICE_NAMES[choice]}"
        last = tries[-1].ended if tries else None
        before = "" if last and (last.missed or last.moved) else f"; {decision.reason}"  # those said it themselves
        return replace(decision, placement=place, reason=f"{what}: {self._figures(tries, moment)}{before}")

    def why_leave(self, tries: Sequence[AttemptView]) -> str | None:
        moment, live = self.clock(), tries[-1]
        waited = (moment - live.launched_at).total_seconds()
        on_spot = live.pool == self._spot_pool
        if not live.claimed and not on_spot:
            if waited <= STEADY_PATIENCE_SECONDS:
                return None
            return f"no machine of {live.pool} took it up within {rough_duration(STEADY_PATIENCE_SECONDS / 3600)}"
        if live.claimed and waited < self._boot and live.seconds_per_step(self.report_steps) is None:
            return None  # what has just been started is given the time to show how fast it is
        choice = self._choice(tries, moment)
        if on_spot and choice == ON_DEMAND:
            none = "" if live.claimed else f"no spot machine for {rough_duration(waited / 3600)}; "
            return f"{none}moved to on-demand: {self._figures(tries, moment)}"
        if not on_spot and choice != ON_DEMAND:
            back = "moved back to spot" if choice == SPOT else "on-demand given up to wait for spot"
            return f"{back}: {self._figures(tries, moment)}"
        return None

    @property
    def _spot_pool(self) -> str:
        return self.places[self.spot].pool

    def _choice(self, tries: Sequence[AttemptView], moment: datetime) -> int:
        refused = {entry.pool for entry in tries if entry.ended and entry.ended.refused}
        time_left = (self.finish_by - moment).total_seconds()
        if time_left <= 0 or self._spot_pool in refused:
            return ON_DEMAND
        if self.total_steps <= self._step(tries):
            return SPOT
        plan = self._planned(tries, moment)
        running, available, age = self._spot_now(tries, moment)
        done = (self._step(tries) - plan.first_step) * plan.seconds_per_step
        if running == SPOT and self._last_chance(tries, time_left):
            return ON_DEMAND
        return decide_once(plan.rule, (moment - plan.began).total_seconds(), done, running, available, age)

    def _last_chance(self, tries: Sequence[AttemptView], time_left: float) -> bool:
        """On spot, with too little slack to survive its loss if the move to on-demand is not made now.

        The policy's rules never get here by themselves, for they start spot with slack to spare; a job that turns out
        slower than it was planned does. Past the last chance, or near the end, staying is the better bet. But a machine
        that has not come yet is no bet at all: for the policy, which knows of no booting, it is held already.
        """
        work_left, changeover = self._work_left(tries), self._changeover
        slack = time_left - work_left
        if not tries[-1].claimed:
            return slack < changeover + TICK_SECONDS
        return changeover <= slack < 1.5 * changeover and work_left > changeover

    def _planned(self, tries: Sequence[AttemptView], moment: datetime) -> _Plan:
        pace = self._pace(tries)
        plan = self._plan
        if plan is None or abs(pace / plan.seconds_per_step - 1) > NEW_SPEED:
            step = self._step(tries)
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
        """Within which a machine that is to be had has begun."""
        return 2 * self.places[self.spot].startup_seconds + DETECTION_SECONDS

    def _pace(self, tries: Sequence[AttemptView]) -> float:
        """Seconds a step is planned to take: as measured last, else as estimated."""
        measured = next(
            (seconds for entry in reversed(tries) if (seconds := entry.seconds_per_step(self.report_steps))), None
        )
        return MARGIN * (measured or self.seconds_per_step)

    def _step(self, tries: Sequence[AttemptView]) -> int:
        """Saved, or reached by the attempt that runs."""
        steps = [self.first_step]
        for entry in tries:
            record = entry.progress
            if record is not None:
                steps.append(record.committed_step if entry.ended else record.step)
        return max(steps)

    def _work_left(self, tries: Sequence[AttemptView]) -> float:
        return self._pace(tries) * (self.total_steps - self._step(tries))

    def _spot_now(self, tries: Sequence[AttemptView], moment: datetime) -> tuple[int, bool, float]:
        """What is held, whether spot is there, and for how many seconds that has been so."""
        live = tries[-1] if tries and tries[-1].ended is None else None
        seen: list[tuple[datetime, bool]] = []
        holds_spot = False
        for entry in tries:
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
            available = False  # it would have been taken up
        return held, available, self._age(observed, moment)

    @staticmethod
    def _age(seen: Sequence[tuple[datetime, bool]], moment: datetime) -> float:
        """Seconds since spot has been as it was seen last."""
        ordered = sorted(seen, reverse=True)
        same = list(itertools.takewhile(lambda entry: entry[1] == ordered[0][1], ordered))
        return max(0.0, (moment - same[-1][0]).total_seconds()) if same else 0.0

    def _steady_place(self, tries: Sequence[AttemptView]) -> int:
        """On-demand, or when that cannot start it, the places after it in turn."""
        others = [n for n, place in enumerate(self.places) if n != self.steady and place.pool != self._spot_pool]
        vain = list(itertools.takewhile(lambda entry: entry.ended and entry.ended.in_vain, reversed(tries)))
        misses = sum(entry.pool != self._spot_pool for entry in vain)
        refused = {entry.pool for entry in tries if entry.ended and entry.ended.refused}
        order = [n for n in (self.steady, *others) if self.places[n].pool not in refused] or [self.spot]
        return order[misses // TRIES_PER_PLACE % len(order)]

    def _figures(self, tries: Sequence[AttemptView], moment: datetime) -> str:
        left = rough_duration(self._work_left(tries) / 3600)
        until = (self.finish_by - moment).total_seconds() / 3600
        if until <= 0:
            return f"{left} of work left, finish_by was {rough_duration(-until)} ago"
        return f"{left} of work left, {rough_duration(until)} until finish_by"
