"""Sandboxes that nobody watches: found by their flow runs and by their tags, and taken over or ended.

There are such sandboxes after a worker died. A worker takes over the runs of its own name at once; those of other names
when Prefect has declared their worker offline, which takes up to a minute and a half. Of several workers of a pool, the
one whose name is first in the alphabet does it, so that no two watch the same sandbox.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING
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
from prefect.exceptions import ObjectNotFound, PrefectHTTPStatusError
from prefect.states import Cancelled, Scheduled

from crucible.errors import CrucibleError
from crucible.pools.modal.configuration import tag_value
from crucible.pools.modal.failures import ModalFailure, SandboxGone
from crucible.pools.modal.names import pid_of, sandbox_id

if TYPE_CHECKING:
    from modal import Sandbox

    from crucible.pools.modal.sandboxes import Sandboxes
    from crucible.pools.modal.worker import ModalWorker

_ALIVE = [StateType.PENDING, StateType.RUNNING, StateType.CANCELLING]
_OWNER = "prefect.worker.name"
# A worker signs a run moments after it has taken it; a run without a name for so long lost its worker in between.
_UNSIGNED_SECONDS = 120.0
_PAGE = 200
_EXPECTED = (CrucibleError, PrefectHTTPStatusError, ObjectNotFound, httpx.HTTPError)


class Adoption:
    """Finds and takes over what a dead worker left, on behalf of a living one."""

    def __init__(self, worker: ModalWorker) -> None:
        self._worker = worker
        self._looking = False

    async def look(self) -> None:
        """Take over the runs that have lost their worker, and end the sandboxes that have lost their run."""
        if self._looking:
            return
        self._looking = True
        try:
            online = await self._online()
            stands_in = min(online) == self._worker.name
            alive = await self._alive()
            for run in alive:
                owner = run.labels.get(_OWNER)
                lost = (
                    stands_in and owner not in online and (owner is not None or _age_seconds(run) > _UNSIGNED_SECONDS)
                )
                if (owner == self._worker.name or lost) and not self._worker.has_in_hand(run.id):
                    self._worker.start_soon(self._take_over, run)
            if stands_in:
                await self._end_abandoned({run.id for run in alive})
        except _EXPECTED as error:
            self._worker.log.warning("Could not look for sandboxes that nobody watches: %s", error)
        except Exception:  # what escapes from here would end the worker, and with it the watch over every sandbox
            self._worker.log.exception("Could not look for sandboxes that nobody watches")
        finally:
            self._looking = False

    async def _online(self) -> set[str]:
        workers = await self._worker.client.read_workers_for_work_pool(self._worker.work_pool.name)
        return {worker.name for worker in workers if worker.status == WorkerStatus.ONLINE} | {self._worker.name}

    async def _alive(self) -> list[FlowRun]:
        """The pool's runs that should have a sandbox now."""
        in_pool = WorkPoolFilter(name=WorkPoolFilterName(any_=[self._worker.work_pool.name]))
        alive = FlowRunFilter(state=FlowRunFilterState(type=FlowRunFilterStateType(any_=_ALIVE)))
        runs: list[FlowRun] = []
        while page := await self._worker.client.read_flow_runs(
            work_pool_filter=in_pool, flow_run_filter=alive, limit=_PAGE, offset=len(runs)
        ):
            runs += page
        return runs

    async def _take_over(self, run: FlowRun) -> None:
        """Watch a run's sandbox from here on, or settle the run, if the sandbox ended meanwhile or never was."""
        worker, log = self._worker, self._worker.get_flow_run_logger(run)
        worker.watched.add(run.id)
        try:
            configuration = await worker.configuration_of(run)
            sandboxes = await worker.connect(configuration, run)
            await worker.sign(run)
            try:
                sandbox, attempt = await self._sandbox_of(run, sandboxes)
            except SandboxGone as gone:
                await self._settle_without_sandbox(run, gone)
                return
            log.info("Worker %r watches sandbox %s now", worker.name, sandbox.object_id)
            await worker.watch(run, attempt, configuration, sandboxes, sandbox, taken_over=True)
        except _EXPECTED as error:
            log.warning("Worker %r could not take this run over: %s", worker.name, error)
        except Exception:  # as above
            log.exception("Worker %r could not take this run over", worker.name)
        finally:
            worker.watched.discard(run.id)

    async def _sandbox_of(self, run: FlowRun, sandboxes: Sandboxes) -> tuple[Sandbox, int]:
        """The newest sandbox of a run, and the attempt it was made for.

        Raises:
            SandboxGone: there is none, and none is on record.
        """
        running = await sandboxes.running({"prefect-flow-run-id": str(run.id)})
        if running:
            sandbox, tags = max(running, key=lambda found: int(found[1]["prefect-attempt"]))
            if run.infrastructure_pid != pid_of(sandbox):
                await self._worker.client.update_flow_run(run.id, infrastructure_pid=pid_of(sandbox))
        elif run.infrastructure_pid:
            sandbox = await sandboxes.find(sandbox_id(run.infrastructure_pid))
            tags = await sandboxes.tags(sandbox)
        else:
            raise SandboxGone("The worker died before there was a sandbox")
        return sandbox, int(tags["prefect-attempt"])

    async def _settle_without_sandbox(self, run: FlowRun, gone: SandboxGone) -> None:
        assert run.state is not None
        if run.state.is_pending():
            again: State[None] = Scheduled(message="Its worker died before the run began; to be picked up again")
            await self._worker.set_state(run.id, again, force=True)
        elif run.state.is_cancelling():
            await self._worker.set_state(run.id, Cancelled(message="It has no sandbox any more"))
        else:
            await self._worker.give_up(run, gone)

    async def _end_abandoned(self, alive: set[UUID]) -> None:
        """Terminate sandboxes of this pool whose run is over or was deleted."""
        worker = self._worker
        configuration = await worker.configuration_of_pool()
        try:
            sandboxes = await worker.connect(configuration)
            running = await sandboxes.running({"prefect-work-pool": tag_value(worker.work_pool.name)})
        except ModalFailure as failure:
            worker.log.debug("Could not list sandboxes: %s", failure)
            return
        for sandbox, tags in running:
            flow_run_id = UUID(tags["prefect-flow-run-id"])
            if flow_run_id in alive or worker.has_in_hand(flow_run_id):
                continue
            run = await worker.read(flow_run_id)
            waiting = run is not None and run.state is not None and not run.state.is_final()
            if waiting or (run is not None and _age_seconds(run) < configuration.grace_seconds):
                continue
            worker.log.warning("Terminating sandbox %s: its flow run %s is over", sandbox.object_id, flow_run_id)
            await sandboxes.terminate(sandbox)


def _age_seconds(run: FlowRun) -> float:
    """Since when the run is in its state."""
    assert run.state is not None
    return (datetime.now(UTC) - run.state.timestamp).total_seconds()
