"""Who is shown what happens in an attempt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, Protocol

from crucible.agent.notices import Notice
from crucible.checkpoints.manifest import Checkpoint
from crucible.formatting import size
from crucible.jobs.records import Heartbeat, Notification


@dataclass(frozen=True)
class Trouble:
    """Something does not go as it should, and a person has to know it."""

    source: str
    message: str


class Observer(Protocol):
    """Receives what happens, for people to see, from several threads. Must return quickly."""

    def log(self, line: str) -> None:
        """A line that the workload printed."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """What the workload reported at a step."""

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        """A heartbeat that has just been written."""

    def event(self, kind: str, message: str, **details: Any) -> None:
        """`claimed`, `restored`, `damaged`, `notice`, `commit`, `trouble`, `last-lines`, `ended`.

        `last-lines`: what a workload that failed printed last, whether or not it was shown before.
        """


class Guarded:
    """An observer whose errors end here: they become a `Trouble`, and training, saving and heartbeats go on.

    So does its wish to exit: rich's console has it when nobody reads any more, and it would end any one of the threads.
    """

    def __init__(self, observer: Observer, post: Callable[[Trouble], None]) -> None:
        self._observer, self._post = observer, post

    def log(self, line: str) -> None:
        self._pass_on(lambda: self._observer.log(line))

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._pass_on(lambda: self._observer.metrics(step, values))

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        self._pass_on(lambda: self._observer.heartbeat(heartbeat))

    def event(self, kind: str, message: str, **details: Any) -> None:
        self._pass_on(lambda: self._observer.event(kind, message, **details))

    def _pass_on(self, notify: Callable[[], None]) -> None:
        try:
            notify()
        except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever it is, it is only about showing
            self._post(Trouble("observer", f"what happens cannot be shown: {error!r}"))


class Journal:
    """What happens in an attempt: passed on to the observer, and kept for the outcome where a person has to know it.

    Only the thread that owns the attempt's state uses it.
    """

    def __init__(self, observer: Guarded) -> None:
        self.observer = observer
        self.notifications: list[Notification] = []
        self._troubles: set[str] = set()

    def notice(self, notice: Notice) -> None:
        self._keep(notice.source, notice.reason, notice.deadline)
        self.observer.event("notice", notice.reason, source=notice.source, deadline=notice.deadline, stop=notice.stop)

    def committed(self, checkpoint: Checkpoint, seconds: float) -> None:
        self._troubles.discard("store")
        self.observer.event(
            "commit",
            f"step {checkpoint.step} committed ({size(checkpoint.bytes)} in {seconds:.1f} s)",
            step=checkpoint.step,
            bytes=checkpoint.bytes,
            seconds=round(seconds, 3),
        )

    def trouble(self, source: str, message: str) -> None:
        """Report once, until it is over, what does not go as it should."""
        if source not in self._troubles:
            self._troubles.add(source)
            self._keep(source, message)
            self.observer.event("trouble", message, source=source)

    def _keep(self, source: str, reason: str, deadline: float | None = None) -> None:
        when = datetime.fromtimestamp(deadline, UTC) if deadline is not None else None
        self.notifications.append(Notification(source=source, reason=reason, deadline=when))
