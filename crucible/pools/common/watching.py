"""Workers that watch what they started for a flow run, and recover what a worker that died left behind.

Such a worker sets the states of its flow runs itself: the machine's end alone does not say how the run ended. It marks
each run with its name. After a worker died, the next one of the same name takes over its runs at once; runs of other
names only when Prefect has declared their worker offline, which takes up to a minute and a half. Of several workers of
a pool, the one whose name comes first in the alphabet does that, so that no two watch the same run.
"""

from __future__ import annotations

import abc
import asyncio
import copy
import time
from collections.abc import Coroutine
from datetime import UTC, datetime
from typing import Any
from uuid import UUID

import httpx
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterState,
    FlowRunFilterStateType,
    WorkPoolFilter,
    WorkPoolFilterName,
)
from prefect.client.schemas.objects import FlowRun, State, StateType, WorkerStatus
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry, Cancelled, Crashed, Scheduled
from prefect.workers.base import BaseWorkerResult

from crucible.errors import CrucibleError
from crucible.pools.common.api_retry import retry_while_away
from crucible.pools.common.event_driven import EventDrivenWorker
from crucible.pools.common.failures import NothingRuns, PoolFailure

_ALIVE = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_WORKER_LABEL, _RESTARTS_LABEL = "prefect.worker.name", "crucible.restarts"
# A worker marks a run moments after it has taken it; a run without a mark for so long lost its worker in between.
_UNMARKED_SECONDS = 120.0
_SUBMITTING_SECONDS = 120.0
_PAUSES_SECONDS = (1, 2, 5, 10, 30)
_PAGE = 200
EXPECTED = (CrucibleError, PrefectHTTPStatusError, ObjectNotFound, httpx.HTTPError)
"""What may fail while the server or the cloud is away; the next heartbeat tries again."""


class WatchingResult(BaseWorkerResult):
    """What ran. The status code is always 0: the worker has set the run's state itself, and for any other code the base
    class would propose Crashed to whichever attempt the run is in by then."""

    status_code: int = 0


class WatchingWorker(EventDrivenWorker, abc.ABC):
    """A worker that watches what it started; subclasses say how to take a run over and what was left behind."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watched: set[UUID] = set()
        self._submitted: dict[UUID, float] = {}
        self._recovering = False
        self._background: set[asyncio.Task[None]] = set()

    @abc.abstractmethod
    async def take_over(self, run: FlowRun) -> None:
        """Watch what runs for a run to its end.

        Raises:
            NothingRuns: there is nothing to watch; the run is then settled.
        """

    @abc.abstractmethod
    async def end_abandoned(self, alive: set[UUID]) -> None:
        """End what still runs for runs of this pool that are not among the living ones."""

    # Recovery.

    async def get_and_submit_flow_runs(self) -> list[FlowRun]:
        """As in every worker; also remembers what was submitted, until it is watched."""
        runs = await super().get_and_submit_flow_runs()
        began = time.monotonic()
        self._submitted = {run: at for run, at in self._submitted.items() if began - at < _SUBMITTING_SECONDS}
        self._submitted |= {run.id: began for run in runs}
        return runs

    async def sync_with_backend(self) -> None:
        """With every heartbeat, recover what has lost its worker."""
        await super().sync_with_backend()
        if self.pool_id is not None:
            self._in_background(self.recover_orphans())

    async def __aexit__(self, *exc_info: Any) -> None:
        for task in self._background:
            task.cancel()
        await super().__aexit__(*exc_info)

    def has_in_hand(self, flow_run_id: UUID) -> bool:
        """Whether this worker handles a run already."""
        return flow_run_id in self.watched or flow_run_id in self._submitted

    def release(self, flow_run_id: UUID) -> None:
        """Forget a run: this worker handles it no more."""
        self.watched.discard(flow_run_id)
        self._submitted.pop(flow_run_id, None)

    async def recover_orphans(self) -> None:
        """Take over the runs that have lost their worker, and end what has lost its run."""
        if self._recovering:
            return
        self._recovering = True
        try:
            online = await self._read_online()
            stands_in = min(online) == self.name
            alive = await self._read_alive()
            for run in alive:
                if self._is_orphan(run, online, stands_in) and not self.has_in_hand(run.id):
                    self.watched.add(run.id)
                    self._in_background(self._take_over(run))
            if stands_in:
                await self.end_abandoned({run.id for run in alive})
        except EXPECTED as error:
            self._logger.warning("Could not look for runs without a worker: %s", error)
        except Exception:
            self._logger.exception("Could not look for runs without a worker")
        finally:
            self._recovering = False

    def _is_orphan(self, run: FlowRun, online: set[str], stands_in: bool) -> bool:
        owner = run.labels.get(_WORKER_LABEL)
        lost = owner not in online and (owner is not None or age_seconds(run) > _UNMARKED_SECONDS)
        return owner == self.name or (stands_in and lost)

    async def _take_over(self, run: FlowRun) -> None:
        log = self.get_flow_run_logger(run)
        try:
            await self.client.update_flow_run_labels(
                run.id, {_WORKER_LABEL: self.name, "prefect.worker.type": self.type}
            )
            await self.take_over(run)
        except NothingRuns as nothing:
            await self._settle_without(run, nothing)
        except EXPECTED as error:
            log.warning("Worker %r could not take this run over: %s", self.name, error)
        except Exception:
            log.exception("Worker %r could not take this run over", self.name)
        finally:
            self.release(run.id)

    async def _settle_without(self, run: FlowRun, nothing: NothingRuns) -> None:
        assert run.state is not None
        if run.state.is_pending():
            again: State[None] = Scheduled(message="Its worker died before the run began; to be picked up again")
            await self.set_state(run.id, again, force=True)
        elif run.state.is_cancelling():
            await self.set_state(run.id, Cancelled(message="Nothing runs for it any more"))
        else:
            await self.give_up(run, nothing)

    async def _read_online(self) -> set[str]:
        workers = await self.client.read_workers_for_work_pool(self.work_pool.name)
        return {worker.name for worker in workers if worker.status == WorkerStatus.ONLINE} | {self.name}

    async def _read_alive(self) -> list[FlowRun]:
        """The pool's runs for which something should run now."""
        in_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[self.work_pool.name]))
        alive = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_ALIVE)))
        runs: list[FlowRun] = []
        while page := await self.client.read_flow_runs(
            work_pool_filter=in_pool, flow_run_filter=alive, limit=_PAGE, offset=len(runs)
        ):
            runs += page
        return runs

    def _in_background(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    # Configurations.

    async def configuration_of(self, flow_run: FlowRun) -> Any:
        """The job configuration of a run, as it would be started now."""
        return await self.job_configuration.resolve_for_flow_run(
            flow_run,
            client=self.client,
            work_pool=self.work_pool.model_copy(deep=True),
            worker_name=self.name,
            worker_id=self.backend_id,
        )

    async def configuration_of_pool(self) -> Any:
        """The job configuration that the pool's own defaults make."""
        template = copy.deepcopy(self.work_pool.base_job_template)
        return await self.job_configuration.from_template_and_values(template, {}, client=self.client)

    # States.

    async def read(self, flow_run_id: UUID) -> FlowRun | None:
        """The flow run as it is now; None when it was deleted."""
        try:
            return await retry_while_away(lambda: self.client.read_flow_run(flow_run_id))
        except ObjectNotFound:
            return None

    async def has_no_use(self, flow_run_id: UUID, attempt: int, pid: str | None) -> bool:
        """Whether the run is cancelled, over, or in a later attempt than the one that `pid` was started for."""
        run = await self.read(flow_run_id)
        if run is None or run.state is None:
            return True
        return run.state.is_final() or run.state.is_cancelling() or has_moved_on(run, attempt, pid)

    async def give_up(self, flow_run: FlowRun, failure: CrucibleError) -> None:
        """End a run that came to nothing, with the failure's own name and message."""
        if isinstance(failure, PoolFailure) and failure.cancels:
            await self.set_state(flow_run.id, Cancelled(message=str(failure)))
            return
        self.get_flow_run_logger(flow_run).error("%s", failure)
        name = failure.state_name if isinstance(failure, PoolFailure) else "Crashed"
        await self.set_state(flow_run.id, Crashed(name=name, message=str(failure)))

    async def restart(self, run: FlowRun, allowed: int, reason: str) -> bool:
        """Put the run back for a new start; False if that was done `allowed` times already."""
        restarts = int(str(run.labels.get(_RESTARTS_LABEL, 0))) + 1
        if restarts > allowed:
            return False
        await retry_while_away(lambda: self.client.update_flow_run_labels(run.id, {_RESTARTS_LABEL: restarts}))
        # Otherwise a run that once retried in its process would be offered to no worker again.
        policy = run.empirical_policy.model_copy(update={"retry_type": "reschedule"})
        await retry_while_away(lambda: self.client.update_flow_run(run.id, empirical_policy=policy))
        await self.set_state(run.id, AwaitingRetry(message=f"{reason}; restart {restarts} of {allowed}"), force=True)
        return True

    async def set_state(self, flow_run_id: UUID, state: State[Any], *, force: bool = False) -> None:
        """Propose a state; the server keeps a final one that is there already, unless `force` is set."""
        for pause in _PAUSES_SECONDS:
            try:
                answer = await retry_while_away(lambda: self.client.set_flow_run_state(flow_run_id, state, force=force))
            except ObjectNotFound:
                return
            run = await self.read(flow_run_id)
            if answer.status == SetStateStatus.ACCEPT or run is None or run.state is None or run.state.is_final():
                return
            self._logger.warning("The server did not take %s for flow run %s; again in %d s", state, flow_run_id, pause)
            await asyncio.sleep(pause)


def has_moved_on(run: FlowRun, attempt: int, pid: str | None) -> bool:
    """Whether the run has left the attempt that `pid` was started for. A run counts up whenever it starts to run."""
    assert run.state is not None
    if run.state.type in (StateType.SCHEDULED, StateType.PENDING):
        return run.run_count > attempt and run.empirical_policy.retry_type != "in_process"
    elsewhere = pid is not None and run.infrastructure_pid not in (None, pid)
    return elsewhere and run.run_count > attempt + 1


def age_seconds(run: FlowRun) -> float:
    """How long the run has been in its state."""
    assert run.state is not None
    return (datetime.now(UTC) - run.state.timestamp).total_seconds()


def look_seconds() -> float:
    """How often a worker looks whether a run still needs what runs for it."""
    return float(get_current_settings().worker.query_seconds)
