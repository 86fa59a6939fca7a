"""Whether a person wants this flow run to stop: Cancel or Pause in Prefect, or `crucible jobs stop`.

Prefect's worker passes a cancellation on by a signal. That signal does not come when the worker that started the
process is gone or was without the server for a minute (Prefect 3.8), and for a pause there is none at all: the run
shows as Paused while it goes on. So whoever supervises looks at the flow run's state itself.
"""

from __future__ import annotations

import contextvars
import os
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import TracebackType
from typing import NoReturn, Self
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import State, StateType
from prefect.exceptions import Abort, PrefectException
from prefect.runtime import flow_run
from prefect.states import Suspended

from crucible.agent.sources import StopFile
from crucible.contract import Variable
from crucible.errors import RecordDamaged, StoreError
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, StopRequest

LOOK_SECONDS = 10.0
"""The worker's signal comes at once, so this is for when it does not come; each look is a request to the server."""
STOP_FILE_SECONDS = 0.5


class StopWatch:
    """Looks every few seconds whether a person wants this flow run to stop; for the time of a `with` block.

    `request` says so. What the main thread is doing meanwhile (tokenizing, evaluating) is interrupted as the worker
    interrupts it: by SIGTERM, which Prefect raises there as `TerminationSignal`. Code that asks `request` itself runs
    inside `polled`.
    """

    def __init__(self, job: Job | None = None, look_seconds: float = LOOK_SECONDS) -> None:
        self.request: StopRequest | None = None
        self._job, self._look_seconds = job, look_seconds
        self._over, self._polled = threading.Event(), threading.Event()
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._look,), name="stop-watch", daemon=True)

    def __enter__(self) -> Self:
        if flow_run.id:
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._over.set()

    @property
    def paused(self) -> bool:
        """Whether the person can go on by Resume in Prefect."""
        return self.request is not None and self.request.end_reason is EndReason.INTERRUPTED

    @contextmanager
    def polled(self) -> Iterator[None]:
        """The code inside asks `request` itself, every second or so, and need not be interrupted."""
        self._polled.set()
        try:
            yield
        finally:
            self._polled.clear()

    def requested(self) -> StopRequest | None:
        """What a person wants, looked up now: for whoever has just received a signal."""
        self.request = self.request or requested_in_prefect()
        if self.request is None and self._job is not None:  # also while a stage runs, which is a job of its own
            try:
                self.request = self._job.read_stop_request(flow_run.id or "")
            except RecordDamaged as error:  # it is there, so somebody wants the job to stop
                reason = f"asked to stop; the request is damaged: {error}"
                self.request = StopRequest(end_reason=EndReason.INTERRUPTED, reason=reason)
            except StoreError:
                pass  # reported by whoever reads the job's other records
        return self.request

    def carried_out(self) -> None:
        """The work has stopped as requested: this flow run, started again, is not to stop for the same request."""
        if self.request is not None and self._job is not None:
            with suppress(StoreError):
                self._job.forget_stop_request(flow_run.id or "")

    def _look(self) -> None:
        while not self._over.wait(self._look_seconds):
            if self.requested() is not None and not self._polled.is_set():
                if not self._over.is_set():
                    _interrupt()
                return


def stop_with_the_container(environment: Mapping[str, str] = os.environ) -> None:
    """Interrupt this flow, as a worker interrupts one, once its container or batch job is asked to stop.

    The signal reaches the container's first process, which passes it on in a file. An attempt's agent watches that;
    a flow without an agent would go on until it is killed.
    """
    path = environment.get(Variable.STOP_FILE)
    if path:
        threading.Thread(target=_stop_with, args=(StopFile(Path(path)),), name="stop-file", daemon=True).start()


def _stop_with(file: StopFile) -> None:
    while file.poll() is None:
        time.sleep(STOP_FILE_SECONDS)
    _interrupt()


def _interrupt() -> None:
    """Raise Prefect's `TerminationSignal` in the main thread, where something there handles SIGTERM."""
    if callable(signal.getsignal(signal.SIGTERM)):
        os.kill(os.getpid(), signal.SIGTERM)


def requested_in_prefect() -> StopRequest | None:
    """What the state of this flow run asks for: CANCELLED or PAUSED; None also if the server cannot be asked."""
    try:
        with get_client(sync_client=True) as client:
            state = client.read_flow_run(UUID(flow_run.id or "")).state
    except (httpx.HTTPError, PrefectException, ValueError):
        return None
    if state is None:
        return None
    if state.type in (StateType.CANCELLING, StateType.CANCELLED):
        return StopRequest(end_reason=EndReason.CANCELLED, reason="cancelled in Prefect")
    if state.type is StateType.PAUSED:
        return StopRequest(end_reason=EndReason.INTERRUPTED, reason="paused in Prefect; Resume goes on from there")
    return None


def being_cancelled() -> bool:
    """Whether a person cancelled the flow run this code is in; False when the server cannot be asked."""
    request = requested_in_prefect()
    return request is not None and request.end_reason is EndReason.CANCELLED


def stay_paused(reason: str) -> NoReturn:
    """End this process and leave the flow run paused, to be resumed at any time; a worker starts it again then.

    Prefect's UI gives every pause a limit, five minutes unless the person changes it, after which Resume fails the run.
    """
    state: State = Suspended(message=reason)
    with suppress(httpx.HTTPError, PrefectException, ValueError), get_client(sync_client=True) as client:
        client.set_flow_run_state(UUID(flow_run.id or ""), state, force=True)
    raise Abort(reason)
