"""A job that waits too long in one pool's queue goes to another that has room."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from crucible.estimate.ranking import PoolState
from crucible.formatting import rough_duration
from crucible.jobs.records import now
from crucible.supervision.retry_policy import Decision, Placement
from crucible.supervision.snapshot import AttemptView

PATIENCE_SECONDS = 300.0
"""In a queue, beyond the time that a machine of the pool takes to start."""


@dataclass
class Overflow:
    """Moves a waiting attempt to the first of the places that could begin at once. A `PlacementPolicy`.

    `pools` tells the state of every pool now, and an empty mapping when it cannot be had.
    """

    places: Sequence[Placement]
    pools: Callable[[], Mapping[str, PoolState]]
    clock: Callable[[], datetime] = now
    patience_seconds: float = PATIENCE_SECONDS

    @property
    def waits_for(self) -> frozenset[str]:
        return frozenset()

    def next(self, tries: Sequence[AttemptView], decision: Decision) -> Decision:
        last = tries[-1] if tries else None
        if last is None or last.ended is None or not last.ended.missed:
            return decision
        if self._waited(last, last.ended.outcome.ended_at) <= self._patience(last.pool):
            return decision
        place = self._roomy(last.pool)
        return decision if place is None else replace(decision, placement=place)

    def why_leave(self, tries: Sequence[AttemptView]) -> str | None:
        live, moment = tries[-1], self.clock()
        waited = self._waited(live, moment)
        if live.claimed or waited <= self._patience(live.pool) or (place := self._roomy(live.pool)) is None:
            return None
        return f"waited {rough_duration(waited / 3600)} for {live.pool}; {self.places[place].pool} has room"

    def _patience(self, pool: str) -> float:
        return self.patience_seconds + max((p.startup_seconds for p in self.places if p.pool == pool), default=0.0)

    @staticmethod
    def _waited(entry: AttemptView, until: datetime) -> float:
        return (until - entry.launched_at).total_seconds()

    def _roomy(self, pool: str) -> int | None:
        """The first other place whose workers are there and have nothing in their queue."""
        states = self.pools()
        for number, place in enumerate(self.places):
            state = states.get(place.pool)
            if place.pool != pool and state is not None and state.has_room(place.instance):
                return number
        return None
