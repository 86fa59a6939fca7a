"""A supervising process's own sign of life: `presence/<flow run>.json`, there as long as its work is not over.

A supervisor beats from here whatever it is doing: preprocessing, watching attempts, evaluating. Where the record stays
and stands still, the process died before its work was over, and the watchdog starts its flow run again.
"""

from __future__ import annotations

import threading
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Self

from pydantic import Field

from crucible.errors import ObjectMissing, StoreError
from crucible.jobs.records import Record, now
from crucible.store import Store

BEAT_SECONDS = 5.0
FOLDER = "presence"


class PresenceRecord(Record):
    """Who works on what; `sequence` grows with each beat."""

    flow_run_id: str
    subject: str
    started_at: datetime = Field(default_factory=now)
    sequence: int = 0

    @property
    def beat(self) -> tuple[datetime, int]:
        """Grows within one process, differs between two."""
        return self.started_at, self.sequence


class Presence:
    """Beats in the background from `with` to its end.

    The record goes when the work is over: at the end of the block, also by an ordinary exception, which is the flow's
    own failure. A process that is killed, or made to leave by a signal, leaves it behind; `leave` removes it then.
    """

    def __init__(self, store: Store, flow_run_id: str, subject: str) -> None:
        self._store = store
        self._record = PresenceRecord(flow_run_id=flow_run_id, subject=subject)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._beat, name="presence", daemon=True)

    def __enter__(self) -> Self:
        if self._record.flow_run_id:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        if kind is None or issubclass(kind, Exception):
            self.leave()

    def leave(self) -> None:
        """Say that the work is over, so that nobody brings it back."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
            with suppress(StoreError):
                self._store.delete(self._key)

    @property
    def _key(self) -> str:
        return f"{FOLDER}/{self._record.flow_run_id}.json"

    def _beat(self) -> None:
        while True:
            self._record.sequence += 1
            with suppress(StoreError):  # seen and told by whoever reads or writes something that matters
                self._store.write_json(self._key, self._record.model_dump(mode="json"))
            if self._over.wait(BEAT_SECONDS):
                return


def present(store: Store) -> list[PresenceRecord]:
    """Every process whose work is not over, dead ones included."""
    found = []
    for info in store.list(FOLDER):
        with suppress(ObjectMissing):
            found.append(PresenceRecord.model_validate(store.read_json(info.key)))
    return found
