"""The placement policy without a deadline: a job that waits too long in one pool's queue moves to one with room."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import datetime

from crucible.estimate.ranking import PoolState
from crucible.formatting import rough_duration
from crucible.jobs.records import now
from crucible.supervision.retry_policy import Decision, Placement
from crucible.supervision.snapshot import AttemptView

QUEUE_TIMEOUT_SECONDS = 300.0
"""Longest wait in a queue, on top of the time that a machine of the pool takes to start."""


@dataclass
class OverflowPolicy:
    """Moves a waiting attempt to the first place that could start it at once; implements `PlacementPolicy`.

    `pools` returns the current state of every pool, or an empty mapping when it is unknown.
    """

    places: Sequence[Placement]
    pools: Callable[[], Mapping[str, PoolState]]
    clock: Callable[[], datetime] = now
    queue_timeout_seconds: float = QUEUE_TIMEOUT_SECONDS

    @property
    def waits_for(self) -> frozenset[str]:
        return frozenset()

    def next(self, attempts: Sequence[AttemptView], decision: Decision) -> Decision:
        last = attempts[-1] if attempts else None
        if last is None or last.ended is None or not last.ended.missed:
            return decision
        if self._waited(last, last.ended.outcome.ended_at) <= self._timeout(last.pool):
            return decision
        place = self._roomy(last.pool)
        return decision if place is None else replace(decision, placement=place)

    def why_leave(self, attempts: Sequence[AttemptView]) -> str | None:
        live, moment = attempts[-1], self.clock()
        waited = self._waited(live, moment)
        if live.claimed or waited <= self._timeout(live.pool) or (place := self._roomy(live.pool)) is None:
            return None
        return f"waited {rough_duration(waited / 3600)} for {live.pool}; {self.places[place].pool} has room"

    def _timeout(self, pool: str) -> float:
        return self.queue_timeout_seconds + max((p.startup_seconds for p in self.places if p.pool == pool), default=0.0)

    @staticmethod
    def _waited(entry: AttemptView, until: datetime) -> float:
        return (until - entry.launched_at).total_seconds()

    def _roomy(self, pool: str) -> int | None:
        """The first other place that has workers online and an empty queue."""
        states = self.pools()
        for number, place in enumerate(self.places):
            state = states.get(place.pool)
            if place.pool != pool and state is not None and state.has_room(place.instance):
                return number
        return None
