"""Brings back a supervising flow run whose process died: `python -m crucible.supervision.watchdog`.

If a supervisor heartbeat (`crucible.supervision.heartbeat`) stops, the watchdog schedules the same flow run again,
whatever Prefect believes of it (Crashed, or still running): the worker starts it anew, and it finds its job. It
watches records because Prefect's own heartbeat automations fire for healthy runs after the server was away.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from uuid import UUID

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import AwaitingRetry

from crucible.errors import StoreError
from crucible.store import Store, default_store_uri, store_at
from crucible.supervision.heartbeat import SupervisorHeartbeat, remove_heartbeat, supervisor_heartbeats

LOOK_SECONDS = 5.0
SILENT_SECONDS = 30.0
"""A supervisor writes its heartbeat every 5 s; its process needs a few seconds to start."""
MAX_REVIVALS = 20

logger = logging.getLogger("crucible.watchdog")


@dataclass
class _Watched:
    position: tuple[datetime, int]
    since: float
    revivals: int = 0


class Watchdog:
    """Looks at every supervisor heartbeat of a store and restarts the flow runs of those that stopped."""

    def __init__(self, store: Store, clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._clock = store, clock
        self._watched: dict[str, _Watched] = {}

    def look(self) -> list[str]:
        """One round; returns what the revived flow runs were working on."""
        records = {record.flow_run_id: record for record in supervisor_heartbeats(self._store)}
        self._watched = {run: watched for run, watched in self._watched.items() if run in records}
        return [record.subject for record in records.values() if self._silent(record) and self._revive(record)]

    def forget_silence(self) -> None:
        """Start all clocks anew: while the server or the store was away, silence meant nothing."""
        for watched in self._watched.values():
            watched.since = self._clock()

    def _silent(self, record: SupervisorHeartbeat) -> bool:
        watched = self._watched.setdefault(record.flow_run_id, _Watched(record.position, self._clock()))
        if watched.position != record.position:
            watched.position, watched.since = record.position, self._clock()
        return self._clock() - watched.since >= SILENT_SECONDS and watched.revivals < MAX_REVIVALS

    def _revive(self, record: SupervisorHeartbeat) -> bool:
        """Schedule the flow run again, unless it is over for Prefect or about to run anyway."""
        watched = self._watched[record.flow_run_id]
        watched.since = self._clock()
        with get_client(sync_client=True) as client:
            try:
                run = client.read_flow_run(UUID(record.flow_run_id))
            except ObjectNotFound:
                run = None
            if run is None or run.deployment_id is None or run.state is None or _over(run):
                remove_heartbeat(self._store, record.flow_run_id)
                return False
            if _will_run_by_itself(run):
                return False
            reason = f"{record.subject}: no sign of life for {SILENT_SECONDS:.0f} s, started again"
            logger.warning("%s (Prefect said: %s)", reason, run.state.name)
            watched.revivals += 1
            _reschedule(client, run, reason)
        return True


def _over(run: FlowRun) -> bool:
    """Whether a person cancelled it, or it came to its own end just before its record could go."""
    assert run.state is not None
    return run.state.type in (StateType.CANCELLED, StateType.CANCELLING, StateType.COMPLETED, StateType.FAILED)


def _will_run_by_itself(run: FlowRun) -> bool:
    """Whether a worker is going to start it."""
    assert run.state is not None
    return run.state.type in (StateType.SCHEDULED, StateType.PENDING)


def _reschedule(client: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    # Without this a worker never picks the run up again: `in_process` is what Prefect notes for retries that the
    # same process was to make.
    policy = run.empirical_policy.model_copy(update={"retry_type": "reschedule"})
    client.update_flow_run(run.id, empirical_policy=policy)
    client.set_flow_run_state(run.id, AwaitingRetry(message=reason), force=True)


def main() -> None:
    """Look every few seconds, for ever."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    watchdog = Watchdog(store_at(default_store_uri()))
    while True:
        try:
            watchdog.look()
        except (httpx.HTTPError, PrefectException, StoreError) as error:
            logger.info("cannot look: %s", error)
            watchdog.forget_silence()
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()
