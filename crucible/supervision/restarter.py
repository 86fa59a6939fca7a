"""Restarts supervising flow runs whose process died: `python -m crucible.supervision.restarter`, kept by the watchdog.

If a supervisor heartbeat (`crucible.supervision.heartbeat`) stops, the same flow run is scheduled again, whatever
Prefect believes of it (Crashed, or still running): a worker starts it, and it finds its job. Records are watched
because Prefect's own heartbeat automations fire for healthy runs after the server was away. A person who cancels or
pauses a run whose process is dead gets what that process would have done: its attempt saves and stops. It also watches
for long queues (`crucible.supervision.queue_watch`).
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
from prefect.events import emit_event
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.states import AwaitingRetry

from crucible.errors import ConfigError, CrucibleError, ObjectMissing, StoreError, StoreRefused, StoreUnavailable
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, StopRequest
from crucible.jobs.stage_records import IN_STAGE_NAME
from crucible.store import Store, default_store_uri, store_at
from crucible.supervision.heartbeat import SupervisorHeartbeat, remove_heartbeat, supervisor_heartbeats
from crucible.supervision.prefect_server import server_id
from crucible.supervision.queue_watch import QueueWatch
from crucible.supervision.stop_job import stop_unsupervised_job

LOOK_SECONDS = 5.0
SILENT_SECONDS = 30.0
"""A supervisor writes its heartbeat every 5 s; its process needs a few seconds to start."""
MAX_RESTARTS = 20

_STOPPED = {
    StateType.CANCELLING: EndReason.CANCELLED,
    StateType.CANCELLED: EndReason.CANCELLED,
    StateType.PAUSED: EndReason.INTERRUPTED,
}
_WILL_RUN_BY_ITSELF = {StateType.SCHEDULED, StateType.PENDING}
_OVER = {StateType.COMPLETED, StateType.FAILED}

logger = logging.getLogger("crucible.restarter")


@dataclass
class _Watched:
    position: tuple[datetime, int]
    since: float
    restarts: int = 0


class Restarter:
    """Looks at every supervisor heartbeat of a store and restarts the flow runs of those that stopped.

    `server` is the id of the Prefect server that is asked: records that name another one are left alone.
    """

    def __init__(self, store: Store, server: str = "", clock: Callable[[], float] = time.monotonic) -> None:
        self._store, self._server, self._clock = store, server, clock
        self._watched: dict[str, _Watched] = {}

    def look(self) -> list[str]:
        """One round; returns what the restarted flow runs were working on."""
        records = {
            record.flow_run_id: record
            for record in supervisor_heartbeats(self._store)
            if record.server in ("", self._server)
        }
        self._watched = {run: watched for run, watched in self._watched.items() if run in records}
        return [record.subject for record in records.values() if self._silent(record) and self._attend(record)]

    def forget_silence(self) -> None:
        """Restart all clocks: while the server or the store was away, silence meant nothing."""
        for watched in self._watched.values():
            watched.since = self._clock()

    def _silent(self, record: SupervisorHeartbeat) -> bool:
        watched = self._watched.setdefault(record.flow_run_id, _Watched(record.position, self._clock()))
        if watched.position != record.position:
            watched.position, watched.since = record.position, self._clock()
        return self._clock() - watched.since >= SILENT_SECONDS and watched.restarts < MAX_RESTARTS

    def _attend(self, record: SupervisorHeartbeat) -> bool:
        """Whether the flow run was restarted. An error that concerns this record alone does not stop the round."""
        self._watched[record.flow_run_id].since = self._clock()
        try:
            return self._restart(record)
        except (StoreUnavailable, StoreRefused, httpx.HTTPError, PrefectException):
            raise
        except Exception:
            logger.exception("%s: flow run %s cannot be restarted", record.subject, record.flow_run_id)
            return False

    def _restart(self, record: SupervisorHeartbeat) -> bool:
        with get_client(sync_client=True) as client:
            try:
                run = client.read_flow_run(UUID(record.flow_run_id))
            except ObjectNotFound:
                if record.server:  # this server's own, deleted by a person; others may know what names no server
                    remove_heartbeat(self._store, record.flow_run_id)
                return False
            if run.state is None or run.state.type in _WILL_RUN_BY_ITSELF:
                return False
            if run.state.type in _STOPPED:
                self._stop(record, _STOPPED[run.state.type])
            if run.deployment_id is None or run.state.type in _STOPPED or run.state.type in _OVER:
                remove_heartbeat(self._store, record.flow_run_id)
                return False
            reason = f"{record.subject}: no sign of life for {SILENT_SECONDS:.0f} s, started again"
            logger.warning("%s (Prefect's state: %s)", reason, run.state.name)
            self._watched[record.flow_run_id].restarts += 1
            _reschedule(client, run, reason)
        emit_lost(record.subject, reason)
        return True

    def _stop(self, record: SupervisorHeartbeat, reason: EndReason) -> None:
        """What the dead process would have done: let the attempts save and stop.

        Those of stages and trials, too: they are jobs of its own flow run, and named after the job or the sweep.
        """
        request = StopRequest(end_reason=reason, reason=f"{reason} in Prefect")
        for job_id in Job.ids(self._store):
            if not job_id.startswith(record.subject[:IN_STAGE_NAME]):
                continue
            try:
                job = Job(self._store, job_id)
                newest = job.read_newest_supervisor()
                if newest is not None and newest.flow_run_id == record.flow_run_id:
                    done = stop_unsupervised_job(job, request)
                    logger.warning("%s was %s in Prefect: %s", job_id, reason, done.message)
            except (ConfigError, ObjectMissing):
                continue  # it is over
            except (StoreUnavailable, StoreRefused):
                raise
            except CrucibleError as error:  # damaged records, too: the other jobs must not wait for them
                logger.warning("%s: its attempt could not be asked to stop: %s", job_id, error)


def emit_lost(job: str, message: str) -> None:
    """The event `crucible.lost`: an attempt of the job, or its supervising process, died."""
    resource = {"prefect.resource.id": f"crucible.job.{job}", "prefect.resource.name": job}
    emit_event("crucible.lost", resource=resource, payload={"message": message})


def _reschedule(client: SyncPrefectClient, run: FlowRun, reason: str) -> None:
    # Without this a worker never picks the run up again: `in_process` is what Prefect notes for retries that the
    # same process was to make.
    policy = run.empirical_policy.model_copy(update={"retry_type": "reschedule"})
    client.update_flow_run(run.id, empirical_policy=policy)
    client.set_flow_run_state(run.id, AwaitingRetry(message=reason), force=True)


def main() -> None:
    """Look every few seconds, for ever."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    logging.getLogger("httpx").setLevel(logging.WARNING)  # a line for each request would fill the log
    store, restarter, queues = store_at(default_store_uri()), None, QueueWatch()
    while True:
        try:
            if restarter is None and (server := server_id()):
                restarter = Restarter(store, server)
            if restarter is not None:
                restarter.look()
                for message in queues.look():
                    logger.warning("%s", message)
        except (httpx.HTTPError, PrefectException, StoreError) as error:
            logger.warning("cannot look: %s", error)
            if restarter is not None:
                restarter.forget_silence()
        except Exception:
            logger.exception("a look went wrong")
        time.sleep(LOOK_SECONDS)


if __name__ == "__main__":
    main()
