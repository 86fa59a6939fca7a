"""The heartbeat of a supervising process: `supervisor-heartbeats/<flow run>.json`, there until its work is over.

A supervisor writes it whatever it is doing: preprocessing, watching attempts, evaluating. If the record stays and its
sequence stops, the process died before its work was over, and the watchdog starts its flow run again.
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

HEARTBEAT_SECONDS = 5.0
FOLDER = "supervisor-heartbeats"
FOLDERS = (FOLDER, "presence")
"""Where it is written, and where earlier releases wrote it."""


class SupervisorHeartbeat(Record):
    """Which flow run works on what; `sequence` grows with each heartbeat."""

    flow_run_id: str
    subject: str
    started_at: datetime = Field(default_factory=now)
    sequence: int = 0

    @property
    def position(self) -> tuple[datetime, int]:
        """Grows within one process, differs between two."""
        return self.started_at, self.sequence


class HeartbeatWriter:
    """Writes a heartbeat in the background while its `with` block runs.

    The record is removed when the work is over: at the end of the block, also after an ordinary exception, which is
    the flow's own failure. A process that is killed, or stopped by a signal, leaves it behind; `finish` removes it.
    """

    def __init__(self, store: Store, flow_run_id: str, subject: str) -> None:
        self._store = store
        self._record = SupervisorHeartbeat(flow_run_id=flow_run_id, subject=subject)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._write, name="supervisor-heartbeat", daemon=True)

    def __enter__(self) -> Self:
        if self._record.flow_run_id:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()
        if kind is None or issubclass(kind, Exception):
            self.finish()

    def finish(self) -> None:
        """The work is over: nobody has to start it again."""
        self._over.set()
        if self._thread.ident is not None:
            self._thread.join()
            remove_heartbeat(self._store, self._record.flow_run_id)

    def _write(self) -> None:
        while True:
            self._record.sequence += 1
            with suppress(StoreError):  # reported by whoever reads or writes something that matters
                self._store.write_json(
                    f"{FOLDER}/{self._record.flow_run_id}.json", self._record.model_dump(mode="json")
                )
            if self._over.wait(HEARTBEAT_SECONDS):
                return


def remove_heartbeat(store: Store, flow_run_id: str) -> None:
    """Remove the flow run's record; one that cannot be removed now is removed by the watchdog."""
    for folder in FOLDERS:
        with suppress(StoreError):
            store.delete(f"{folder}/{flow_run_id}.json")


def supervisor_heartbeats(store: Store) -> list[SupervisorHeartbeat]:
    """Every flow run whose work is not over, dead ones included; of two records of a flow run, the newer one."""
    found: dict[str, SupervisorHeartbeat] = {}
    for folder in reversed(FOLDERS):
        for info in store.list(folder):
            with suppress(ObjectMissing):
                record = SupervisorHeartbeat.model_validate(store.read_json(info.key))
                found[record.flow_run_id] = record
    return list(found.values())
