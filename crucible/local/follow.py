"""Follow one run of the pipeline to its end: its progress, from the job's records and from Prefect."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import NamedTuple

import httpx

from crucible.errors import ServiceError
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, now
from crucible.reports.summary import JobSummary, summarise
from crucible.store import Store

LOOK_SECONDS = 0.5
RUNNING_LOOK_SECONDS = 2.0
"""While the run is running."""
ATTEMPT_RUNS_SECONDS = 10.0
"""While the records show that an attempt runs, how often the server is asked: an answer takes 20 ms of CPU, which the
training misses on a small machine."""
ATTEMPT_DONE_SECONDS = 1.0
"""Once they show that the last attempt has completed: the end is near."""
SILENT_SECONDS = 10.0
"""How long the server may leave requests unanswered before the person who follows is notified."""
CRASH_SECONDS = 90.0
"""How long a crashed run may wait for the watchdog to restart it."""
FINAL = {"COMPLETED", "FAILED", "CANCELLED"}


class RunState(NamedTuple):
    """A flow run's state."""

    kind: str
    """Prefect's type of state: SCHEDULED, PENDING, RUNNING, COMPLETED, …; empty before the server's first answer."""
    message: str
    unanswered: str = ""
    """Since when the server has not answered, as a message; empty while it does."""


@dataclass(frozen=True)
class Standing:
    """Where a run is at one moment."""

    state: str
    """As `RunState.kind`."""
    message: str
    summary: JobSummary | None
    """The job; None until the dataset is there and the job on record."""
    unanswered: str = ""
    """As in `RunState`. The job's records are current all the same."""

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

    Goes on while the server does not answer; raises `ServiceError` when it refuses.
    """
    summary: JobSummary | None = None

    def ask_every() -> float:
        if summary is None or not summary.attempts:
            return RUNNING_LOOK_SECONDS
        end = summary.attempts[-1].end_reason
        if end is None:
            return ATTEMPT_RUNS_SECONDS
        return ATTEMPT_DONE_SECONDS if end is EndReason.COMPLETED else RUNNING_LOOK_SECONDS

    for state, message, unanswered in read_states(api, flow_run_id, ask_every):
        summary = summarise(Job(store, job_id)) if store.exists(f"jobs/{job_id}/job.json") else None
        yield Standing(state, message, summary, unanswered)


def read_states(
    api: httpx.Client, flow_run_id: str, ask_every: Callable[[], float] = lambda: RUNNING_LOOK_SECONDS
) -> Iterator[RunState]:
    """The flow run's state, again and again until it has ended; the last one is final.

    A running run is looked up every `ask_every()` seconds; meanwhile, and while the server does not answer, the last
    state that is known comes again: the job goes on without the server. Raises `ServiceError` when the server refuses,
    such as after somebody deleted the flow run.
    """
    silence, crash = Silence(api), time.monotonic()
    known = RunState("", "")
    while True:
        asked_at = time.monotonic()
        try:
            state = api.get(f"/flow_runs/{flow_run_id}").raise_for_status().json()["state"]
        except httpx.HTTPError as error:
            if isinstance(error, httpx.HTTPStatusError) and _refuses(error.response):
                raise ServiceError(f"the Prefect server does not show flow run {flow_run_id}: {error}") from error
            crash = time.monotonic()  # the watchdog cannot restart anything without the server
            yield known._replace(unanswered=silence.described(error))
            time.sleep(RUNNING_LOOK_SECONDS if known.kind == "RUNNING" else LOOK_SECONDS)
            continue
        silence = Silence(api)
        known = RunState(state["type"], state["message"] or state["name"])
        if known.kind != "CRASHED":
            crash = time.monotonic()
        yield known
        if known.kind in FINAL or time.monotonic() - crash > CRASH_SECONDS:
            return
        if known.kind != "RUNNING":
            time.sleep(LOOK_SECONDS)
            continue
        while (left := asked_at + ask_every() - time.monotonic()) > 0:
            time.sleep(min(left, RUNNING_LOOK_SECONDS))
            if left > RUNNING_LOOK_SECONDS:
                yield known


def _refuses(answer: httpx.Response) -> bool:
    """Whether it is a no; a server that is asked too often, Prefect Cloud above all, only says: later."""
    later = (httpx.codes.TOO_MANY_REQUESTS, httpx.codes.REQUEST_TIMEOUT)
    return answer.is_client_error and answer.status_code not in later


class Silence:
    """The time since the server's last answer."""

    def __init__(self, api: httpx.Client) -> None:
        self._server, self._since, self._at = str(api.base_url).rstrip("/"), time.monotonic(), now()

    def described(self, error: httpx.HTTPError) -> str:
        """The silence as a message; empty while it may be a restart of the server."""
        if time.monotonic() - self._since < SILENT_SECONDS:
            return ""
        reason = str(error) or type(error).__name__
        return f"the Prefect server at {self._server} has not answered since {self._at:%H:%M:%S} UTC ({reason})"
