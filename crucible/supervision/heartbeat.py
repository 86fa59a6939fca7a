"""The heartbeat of a supervising process: `supervisor-heartbeats/<flow run>.json`, there until its work is over.

A supervisor writes it whatever it is doing: preprocessing, watching attempts, evaluating. If the record stays and its
sequence stops, the process died before its work was over, and the watchdog of its own Prefect server starts the flow
run again. Two set-ups may share a store: each record names the server that it belongs to, and nobody touches another's.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import datetime
from types import TracebackType
from typing import Self

from pydantic import Field

from crucible.errors import ObjectMissing, RecordDamaged, StoreError, StoreUnavailable
from crucible.jobs.records import Record, now
from crucible.store import Store

HEARTBEAT_SECONDS = 5.0
FRESH_SECONDS = 2 * HEARTBEAT_SECONDS + 2.0
FOLDER = "supervisor-heartbeats"
FOLDERS = (FOLDER, "presence")
"""Where it is written, and where earlier releases wrote it."""

logger = logging.getLogger(__name__)


class SupervisorHeartbeat(Record):
    """Which flow run works on what; `sequence` grows with each heartbeat."""

    flow_run_id: str
    subject: str
    """The job, or the sweep."""
    server: str = ""
    """The Prefect server that knows the flow run, by `prefect_server.server_id`; empty in earlier releases' records."""
    started_at: datetime = Field(default_factory=now)
    at: datetime | None = None
    sequence: int = 0

    @property
    def position(self) -> tuple[datetime, int]:
        """Grows within one process, differs between two."""
        return self.started_at, self.sequence

    @property
    def fresh(self) -> bool:
        """Whether it was written just now, by this machine's clock."""
        return self.at is not None and abs((now() - self.at).total_seconds()) < FRESH_SECONDS


class HeartbeatWriter:
    """Writes a heartbeat in the background while its `with` block runs.

    The record is removed when the work is over: at the end of the block, also after an ordinary exception, which is
    the flow's own failure. A process that is killed, or stopped by a signal, leaves it behind; `finish` removes it.
    """

    def __init__(self, store: Store, flow_run_id: str, subject: str, server: str = "") -> None:
        self._store = store
        self._record = SupervisorHeartbeat(flow_run_id=flow_run_id, subject=subject, server=server)
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
        reported = ""
        while True:
            self._record.sequence += 1
            self._record.at = now()
            try:
                self._store.write_model(f"{FOLDER}/{self._record.flow_run_id}.json", self._record)
            except StoreUnavailable:  # reported by whoever reads or writes something that matters
                pass
            except StoreError as error:
                if str(error) != reported:
                    reported = str(error)
                    logger.warning("%s: no heartbeat could be written: %s", self._record.subject, error)
            if self._over.wait(HEARTBEAT_SECONDS):
                return


def remove_heartbeat(store: Store, flow_run_id: str) -> None:
    """Remove the flow run's record; one that cannot be removed now is removed by the watchdog."""
    for folder in FOLDERS:
        with suppress(StoreError):
            store.delete(f"{folder}/{flow_run_id}.json")


def supervisor_heartbeats(store: Store) -> list[SupervisorHeartbeat]:
    """Every flow run whose work is not over, dead ones included; of two records of a flow run, the newer one.

    A damaged record is logged and left out: it must not hide the others.
    """
    found: dict[str, SupervisorHeartbeat] = {}
    for folder in reversed(FOLDERS):
        for info in store.list(folder):
            try:
                record = store.read_model(info.key, SupervisorHeartbeat, "delete it")
            except ObjectMissing:
                continue
            except RecordDamaged as error:
                logger.warning("%s", error)
                continue
            found[record.flow_run_id] = record
    return list(found.values())


def is_supervised(store: Store, subject: str, wait: Callable[[float], object] = time.sleep) -> bool:
    """Whether a process works on the job or sweep now; takes seconds where one looks dead."""
    return bool(living_supervisors(store, lambda record: record.subject == subject, wait))


def living_supervisors(
    store: Store, concerns: Callable[[SupervisorHeartbeat], bool], wait: Callable[[float], object] = time.sleep
) -> list[str]:
    """The flow runs, of those that it `concerns`, whose process works now; takes seconds where one looks dead."""

    def positions() -> dict[str, SupervisorHeartbeat]:
        return {record.flow_run_id: record for record in supervisor_heartbeats(store) if concerns(record)}

    before = positions()
    fresh = [key for key, record in before.items() if record.fresh]
    if fresh or not before:
        return fresh
    wait(HEARTBEAT_SECONDS + 1.0)  # its clock may be wrong: a heartbeat that moves is one that lives
    return [key for key, record in positions().items() if key not in before or record.position != before[key].position]
