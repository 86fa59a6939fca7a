"""A clock of its own, pools whose machines live the lives they are given, and a listener that remembers."""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from crucible.checkpoints.commits import Checkpoints
from crucible.errors import ServiceError
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import Claim, EndReason, Heartbeat, Launch, Outcome, Start
from crucible.supervision.launcher import Hint, PoolSays


class World:
    """Time that passes only while somebody sleeps; what is planned for a moment happens when it comes."""

    def __init__(self) -> None:
        self.time = 1000.0
        self._plans: list[tuple[float, int, Callable[[], object]]] = []
        self._count = itertools.count()

    def clock(self) -> float:
        return self.time

    def now(self) -> datetime:
        """The time of day."""
        return datetime(2026, 5, 7, tzinfo=UTC) + timedelta(seconds=self.time)

    def sleep(self, seconds: float) -> None:
        end = self.time + seconds
        while self._plans and self._plans[0][0] <= end:
            moment, _, act = heapq.heappop(self._plans)
            self.time = max(self.time, moment)
            act()
        self.time = max(self.time, end)

    def after(self, seconds: float, act: Callable[[], object]) -> None:
        heapq.heappush(self._plans, (self.time + seconds, next(self._count), act))


Life = Iterable[tuple[float, Callable[[Attempt], object]]]
"""What a machine does with an attempt: seconds after the launch, and the act."""


@dataclass
class Pool:
    """A launcher whose machines live the lives they are given; attempt 3 lives `lives[3]`, others the last one."""

    world: World
    lives: dict[int, Life]
    hints: dict[int, Hint] = field(default_factory=dict)
    hint_takes: Callable[[], float] = lambda: 0.0
    refuses: set[int] = field(default_factory=set)
    asked: list[tuple[int, str]] = field(default_factory=list)
    born: list[int] = field(default_factory=list)
    retired: list[tuple[int, EndReason]] = field(default_factory=list)
    questions: int = 0

    def launch(self, job: Job, launch: Launch) -> None:
        self.asked.append((launch.number, launch.pool))
        if launch.number in self.refuses:
            raise ServiceError("the server does not answer")
        if launch.number in self.born:
            return
        self.born.append(launch.number)
        life = self.lives.get(launch.number) or self.lives.get(0) or []
        for seconds, act in life:
            self.world.after(seconds, lambda act=act: act(job.attempt(launch.number)))

    def hint(self, job: Job, launch: Launch) -> Hint:
        self.questions += 1
        self.world.sleep(self.hint_takes())
        return self.hints.get(launch.number, Hint(PoolSays.ALIVE))

    def retire(self, job: Job, launch: Launch, outcome: Outcome) -> None:
        self.retired.append((launch.number, outcome.end_reason))


class Listening:
    """Remembers what it is told; `reads_store` makes it look at the records, as a report does."""

    def __init__(self, reads_store: bool = False) -> None:
        self.messages: list[str] = []
        self.reads_store = reads_store

    def changed(self, job: Job, message: str) -> None:
        self.messages.append(message)
        if self.reads_store:
            job.cost_usd()

    def watched(self, job: Job, heartbeat: Heartbeat | None) -> None:
        if self.reads_store:
            job.cost_usd()


def claims(attempt: Attempt) -> None:
    """Takes the attempt up and resumes from what is committed."""
    attempt.take(Claim(number=attempt.number))
    newest = next(iter(Checkpoints(attempt.job).list()), None)
    attempt.begin(Start(step=newest.step if newest else 0))


def beats(sequence: int) -> Callable[[Attempt], object]:
    return lambda attempt: attempt.write_heartbeat(
        Heartbeat(sequence=sequence, phase="training", step=sequence, cost_usd=0.1)
    )


def ends(reason: str, committed: int = 10, **fields: Any) -> Callable[[Attempt], object]:
    outcome = Outcome(end_reason=EndReason(reason), message=f"about {reason}", committed_step=committed, **fields)
    return lambda attempt: attempt.end(outcome)


def alive_for(seconds: float, *then: tuple[float, Callable[[Attempt], object]]) -> list[tuple[float, Any]]:
    """Claims after 1 s, beats every 5 s until so many seconds after the launch."""
    beating = [(1.0 + moment, beats(moment // 5 + 1)) for moment in range(0, int(seconds), 5)]
    return [(1.0, claims), *beating, *then]
