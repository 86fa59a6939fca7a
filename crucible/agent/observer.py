"""Who hears what happens in an attempt."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

from crucible.records import Heartbeat


class Observer(Protocol):
    """Hears what happens, for people to see, from several threads. Must return quickly."""

    def log(self, line: str) -> None:
        """A line the workload printed."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """What the workload reported at a step."""

    def beat(self, heartbeat: Heartbeat) -> None:
        """A sign of life that has just been written."""

    def event(self, kind: str, message: str, **details: Any) -> None:
        """`claimed`, `restored`, `damaged`, `notice`, `commit`, `trouble`, `ended`."""


class Guarded:
    """An observer whose errors end with it: they are told, once, and training, saving and beating go on."""

    def __init__(self, observer: Observer, on_trouble: Callable[[str, str], None]) -> None:
        self._observer, self._on_trouble = observer, on_trouble

    def log(self, line: str) -> None:
        self._pass_on(lambda: self._observer.log(line))

    def metrics(self, step: int, values: dict[str, float]) -> None:
        self._pass_on(lambda: self._observer.metrics(step, values))

    def beat(self, heartbeat: Heartbeat) -> None:
        self._pass_on(lambda: self._observer.beat(heartbeat))

    def event(self, kind: str, message: str, **details: Any) -> None:
        self._pass_on(lambda: self._observer.event(kind, message, **details))

    def _pass_on(self, tell: Callable[[], None]) -> None:
        try:
            tell()
        except Exception as error:  # noqa: BLE001 - whatever it is, it is only about showing
            self._on_trouble("observer", f"what happens cannot be shown: {error!r}")
