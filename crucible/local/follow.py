"""Follow one run of the pipeline to its end: its progress, from the job's records and from Prefect."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from crucible.errors import ServiceError
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason
from crucible.reports.summary import JobSummary, summarise
from crucible.store import Store

LOOK_SECONDS = 0.5
RUNNING_LOOK_SECONDS = 2.0
"""While the run is running. Each look takes 15 ms of the server's CPU, which the training misses on a small machine."""
WAIT_SECONDS = 90.0
"""How long the server may be out of reach, and a crashed run may wait for the watchdog to restart it."""
FINAL = {"COMPLETED", "FAILED", "CANCELLED"}


@dataclass(frozen=True)
class Standing:
    """Where a run is at one moment."""

    state: str
    """Prefect's type of state: SCHEDULED, PENDING, RUNNING, COMPLETED, …"""
    message: str
    summary: JobSummary | None
    """The job; None until the dataset is there and the job on record."""

    @property
    def stage(self) -> str:
        """What it is doing, as a message."""
        if self.state in FINAL:
            return self.state.lower()
        if self.state == "CRASHED":
            return "waiting for the watchdog"
        if self.state != "RUNNING":
            return "waiting for the worker"
        if self.summary is None:
            return "preparing"
        if not self.summary.attempts or (self.summary.step == 0 and self.summary.spec.total_steps):
            return "starting"
        own_script = self.summary.spec.script is not None
        if self.summary.attempts[-1].end_reason is EndReason.COMPLETED:
            return "finishing" if own_script else "evaluating"
        return "running" if own_script else "training"


def follow(api: httpx.Client, flow_run_id: str, store: Store, job_id: str) -> Iterator[Standing]:
    """Where the run stands, again and again until it has ended; the last one is final.

    Raises `ServiceError` when the server stays out of reach.
    """
    for state, message in read_states(api, flow_run_id):
        known = store.exists(f"jobs/{job_id}/job.json")
        yield Standing(state, message, summarise(Job(store, job_id)) if known else None)


def read_states(api: httpx.Client, flow_run_id: str) -> Iterator[tuple[str, str]]:
    """The flow run's state and its message, again and again until it has ended; the last one is final.

    Raises `ServiceError` when the server stays out of reach.
    """
    server, crash = Deadline(), Deadline()
    kind = ""
    while True:
        try:
            state = api.get(f"/flow_runs/{flow_run_id}").raise_for_status().json()["state"]
            server.restart()
        except httpx.HTTPError as error:
            if server.has_passed():
                raise ServiceError(
                    f"the Prefect server at {api.base_url} does not answer ({error}); see: crucible doctor"
                ) from error
        else:
            kind = state["type"]
            yield kind, state["message"] or state["name"]
            if kind != "CRASHED":
                crash.restart()
            if kind in FINAL or (kind == "CRASHED" and crash.has_passed()):
                return
        time.sleep(RUNNING_LOOK_SECONDS if kind == "RUNNING" else LOOK_SECONDS)


class Deadline:
    """Passes `WAIT_SECONDS` after its last restart."""

    def __init__(self) -> None:
        self._since = time.monotonic()

    def restart(self) -> None:
        self._since = time.monotonic()

    def has_passed(self) -> bool:
        return time.monotonic() - self._since > WAIT_SECONDS
