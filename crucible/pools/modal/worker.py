"""A Prefect worker of type `modal`, for one's own server: every flow run in a sandbox on Modal.

    prefect work-pool create modal --type modal
    prefect worker start --pool modal --type modal --name modal-1

One attempt of a flow run is one sandbox, named after it. The worker may die at any time: the next one (of the same
name, or any other once Prefect has declared the first one offline) finds the sandboxes and goes on watching them. What
a sandbox's end means for the work it did is not decided here: the run gets a state that says what happened, and whoever
supervises it looks at what was saved.
"""

from __future__ import annotations

import asyncio
import copy
import logging
import time
from collections.abc import Callable, Coroutine
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.client.schemas.responses import SetStateStatus
from prefect.exceptions import InfrastructureNotFound, ObjectNotFound
from prefect.logging.loggers import flow_run_logger
from prefect.settings import get_current_settings
from prefect.states import AwaitingRetry, Cancelled, Crashed
from prefect.workers.base import BaseWorker, BaseWorkerResult

from crucible.errors import CrucibleError
from crucible.pools.common.event_driven import EventDrivenWorker
from crucible.pools.common.outages import through_outages
from crucible.pools.modal.configuration import ModalJobConfiguration, ModalVariables
from crucible.pools.modal.ends import End, failure_of
from crucible.pools.modal.failures import LifetimeReached, ModalFailure, NotWanted, SandboxGone, SandboxStopped
from crucible.pools.modal.names import pid_of, sandbox_id, sandbox_name
from crucible.pools.modal.orphan_recovery import Adoption

if TYPE_CHECKING:  # Modal's SDK is loaded with the first flow run: every worker of every type imports this module.
    import anyio.abc
    from modal import Sandbox

    from crucible.pools.modal.sandboxes import Sandboxes

_BILLED_LABEL, _RESTARTS_LABEL = "modal.billed_usd", "modal.restarts"
_LAST_OUTPUT_SECONDS = 5.0
_PAUSES_SECONDS = (1, 2, 5, 10, 30)


class ModalWorkerResult(BaseWorkerResult):
    """The sandbox of a run. The status code is always 0, whatever happened: this worker has set the run's state itself,
    and for any other code the base class would propose Crashed to whichever attempt the run is in by then."""

    status_code: int = 0


class ModalWorker(EventDrivenWorker, BaseWorker[ModalJobConfiguration, ModalVariables, ModalWorkerResult]):
    """Runs flow runs in Modal sandboxes."""

    type = "modal"
    job_configuration = ModalJobConfiguration
    job_configuration_variables = ModalVariables
    _description = "Run each flow run in a sandbox on Modal: CPUs and GPUs in seconds, billed by the second."
    _display_name = "Modal"
    _documentation_url = "https://modal.com/docs/guide/sandboxes"
    _logo_url = "https://modal.com/assets/favicon.svg"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.watched: set[UUID] = set()
        self._adoption = Adoption(self)

    # What Prefect asks of a worker.

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ModalJobConfiguration,
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> ModalWorkerResult:
        """Run one attempt of a flow run to its end."""
        self.watched.add(flow_run.id)
        try:
            try:
                sandboxes = await self.connect(configuration, flow_run)
                sandbox = await self._start(flow_run, configuration, sandboxes)
            except CrucibleError as failure:
                await self._settle(flow_run, flow_run.run_count, configuration, None, failure)
                if task_status:
                    task_status.started(failure)  # an exception tells the base class that there is nothing to kill
                return ModalWorkerResult(identifier="")
            if task_status:
                task_status.started(pid_of(sandbox))
            await self.watch(flow_run, flow_run.run_count, configuration, sandboxes, sandbox)
            return ModalWorkerResult(identifier=sandbox.object_id)
        finally:
            self.watched.discard(flow_run.id)

    async def kill_infrastructure(
        self, infrastructure_pid: str, configuration: ModalJobConfiguration, grace_seconds: int = 30
    ) -> None:
        """Terminate a sandbox at once; Modal knows no grace."""
        sandboxes = await self.connect(configuration)
        try:
            await sandboxes.terminate(await sandboxes.find(sandbox_id(infrastructure_pid)))
        except SandboxGone as gone:
            raise InfrastructureNotFound(str(gone)) from gone

    async def sync_with_backend(self) -> None:
        """With every heartbeat, look for sandboxes that nobody watches."""
        await super().sync_with_backend()
        if self._work_pool is not None and self._runs_task_group is not None:
            self._runs_task_group.start_soon(self._adoption.look)

    # What taking over needs of a worker.

    @property
    def log(self) -> logging.Logger | logging.LoggerAdapter[logging.Logger]:
        """The worker's own log."""
        return self._logger

    def has_in_hand(self, flow_run_id: UUID) -> bool:
        """Whether this worker is at work on a run already."""
        return flow_run_id in self.watched or flow_run_id in self._submitting_flow_run_ids

    def start_soon(self, function: Callable[..., Coroutine[Any, Any, None]], *args: Any) -> None:
        """Do something beside the worker's loops."""
        assert self._runs_task_group is not None
        self._runs_task_group.start_soon(function, *args)

    async def sign(self, flow_run: FlowRun) -> None:
        """Put this worker's name on a run."""
        await self._give_worker_labels_to_flow_run(flow_run.id)

    async def configuration_of(self, flow_run: FlowRun) -> ModalJobConfiguration:
        """The job configuration of a run, as it would be started now."""
        return await self.job_configuration.resolve_for_flow_run(
            flow_run,
            client=self.client,
            work_pool=self.work_pool.model_copy(deep=True),
            worker_name=self.name,
            worker_id=self.backend_id,
        )

    async def configuration_of_pool(self) -> ModalJobConfiguration:
        """The job configuration that the pool's own defaults make."""
        template = copy.deepcopy(self.work_pool.base_job_template)
        return await self.job_configuration.from_template_and_values(template, {}, client=self.client)

    # One attempt.

    async def connect(self, configuration: ModalJobConfiguration, flow_run: FlowRun | None = None) -> Sandboxes:
        """Open the Modal account of a job configuration; messages go to the flow run's log, if there is one."""
        from crucible.pools.modal.sandboxes import Sandboxes

        logger = self.get_flow_run_logger(flow_run) if flow_run else self._logger
        return await Sandboxes.connect(configuration, logger)

    async def _start(self, flow_run: FlowRun, configuration: ModalJobConfiguration, sandboxes: Sandboxes) -> Sandbox:
        """Create the attempt's sandbox, after the former one is gone; give up when the run is cancelled meanwhile."""
        from crucible.pools.modal.sandboxes import check_api_url

        check_api_url(configuration.env.get("PREFECT_API_URL") or "")
        logger = self.get_flow_run_logger(flow_run)
        if configuration.region:
            where, factor = ", ".join(configuration.region), configuration.price_multiplier
            logger.info("Staying in %s: Modal multiplies all prices by %g", where, factor)
        await self._end_former(flow_run, configuration, sandboxes)
        creating = asyncio.create_task(sandboxes.create(sandbox_name(flow_run), flow_run.run_count))
        try:
            while not (await asyncio.wait({creating}, timeout=_look_seconds()))[0]:
                if await self._has_no_use(flow_run, flow_run.run_count, None):
                    raise NotWanted("the flow run was cancelled while it waited for a sandbox")
            return creating.result()
        except (NotWanted, asyncio.CancelledError):
            creating.cancel()
            await asyncio.wait({creating})
            if not creating.cancelled() and creating.exception() is None:  # it was there in the same moment
                await sandboxes.terminate(creating.result())
            raise

    async def _end_former(self, flow_run: FlowRun, configuration: ModalJobConfiguration, sandboxes: Sandboxes) -> None:
        """Never two at once: an earlier sandbox of the same work may still be saving, then it has its grace to end."""
        logger = self.get_flow_run_logger(flow_run)
        own = {"prefect-flow-run-id": str(flow_run.id), "prefect-attempt": str(flow_run.run_count)}
        for sandbox, tags in await sandboxes.running(configuration.exclusive()):
            if own.items() <= tags.items():
                continue
            logger.info("The former sandbox %s has %d s to end", sandbox.object_id, configuration.grace_seconds)
            try:
                async with asyncio.timeout(configuration.grace_seconds):
                    await sandboxes.end_of(sandbox)
            except SandboxGone:
                continue
            except TimeoutError:
                logger.warning("The former sandbox %s did not end by itself: terminated", sandbox.object_id)
                await sandboxes.terminate(sandbox)

    async def watch(
        self,
        flow_run: FlowRun,
        attempt: int,
        configuration: ModalJobConfiguration,
        sandboxes: Sandboxes,
        sandbox: Sandbox,
        *,
        taken_over: bool = False,
    ) -> None:
        """Follow a sandbox to its end and give the run the state that this end calls for.

        `attempt` is the run's `run_count` when the sandbox was made; `taken_over` says that another worker has watched
        it until now.
        """
        from crucible.pools.modal.output import STREAMS, Output, lines_shown

        began = time.monotonic()
        shown = await through_outages(lambda: lines_shown(self.client, flow_run.id)) if taken_over else None
        logs = {stream: flow_run_logger(flow_run).getChild(f"sandbox.{stream}") for stream in STREAMS}

        def show(stream: str, line: str) -> None:
            logs[stream].info("%s", line)

        output = Output(sandbox, show if configuration.stream_output else None, shown)
        following = asyncio.create_task(output.follow())
        try:
            end = await self._end_of(flow_run, attempt, configuration, sandboxes, sandbox)
            await asyncio.wait({following}, timeout=_LAST_OUTPUT_SECONDS)
            listed = None if taken_over else (configuration.usd_per_hour or 0.0) / 3600 * (time.monotonic() - began)
            await self._note_cost(flow_run, sandboxes, sandbox, listed)
            failure = failure_of(end, configuration, output.last_words)
            await self._settle(flow_run, attempt, configuration, sandbox, failure)
        except ModalFailure as failure:
            await self._settle(flow_run, attempt, configuration, sandbox, failure)
        finally:
            following.cancel()

    async def _end_of(
        self,
        flow_run: FlowRun,
        attempt: int,
        configuration: ModalJobConfiguration,
        sandboxes: Sandboxes,
        sandbox: Sandbox,
    ) -> End:
        """Wait for the end; terminate the sandbox once its run has no more use for it and the grace is over."""
        ending = asyncio.create_task(sandboxes.end_of(sandbox))
        useless_since: float | None = None
        try:
            while not (await asyncio.wait({ending}, timeout=_look_seconds()))[0]:
                if not await self._has_no_use(flow_run, attempt, sandbox):
                    useless_since = None
                    continue
                useless_since = useless_since or time.monotonic()
                if time.monotonic() - useless_since >= configuration.grace_seconds:
                    await self._terminate(flow_run, sandboxes, sandbox)
            return ending.result()
        finally:
            ending.cancel()

    async def _terminate(self, flow_run: FlowRun, sandboxes: Sandboxes, sandbox: Sandbox) -> None:
        logger = self.get_flow_run_logger(flow_run)
        logger.info("Terminating sandbox %s", sandbox.object_id)
        try:
            await sandboxes.terminate(sandbox)
        except ModalFailure as failure:
            logger.warning("Sandbox %s could not be terminated yet: %s", sandbox.object_id, failure)

    async def _has_no_use(self, flow_run: FlowRun, attempt: int, sandbox: Sandbox | None) -> bool:
        """Whether the run is cancelled, over, or in a later attempt by now."""
        run = await self.read(flow_run.id)
        if run is None or run.state is None:
            return True
        return run.state.is_final() or run.state.is_cancelling() or _has_moved_on(run, attempt, sandbox)

    async def _settle(
        self,
        flow_run: FlowRun,
        attempt: int,
        configuration: ModalJobConfiguration,
        sandbox: Sandbox | None,
        failure: CrucibleError,
    ) -> None:
        """Give the run a final state, if there is no sandbox, or it ended, and the run is still in this attempt."""
        run = await self.read(flow_run.id)
        if run is None or run.state is None or _has_moved_on(run, attempt, sandbox):
            return
        if run.state.is_cancelling():
            message = "Its sandbox has ended" if sandbox is not None else "Cancelled before it had a sandbox"
            await self.set_state(run.id, Cancelled(message=message))
        elif run.state.type in (StateType.PENDING, StateType.RUNNING):
            if isinstance(failure, SandboxStopped | LifetimeReached) and await self._restart(run, configuration):
                return
            await self.give_up(run, failure)

    async def _restart(self, run: FlowRun, configuration: ModalJobConfiguration) -> bool:
        """Put the run back for a new sandbox, where that is left to this worker and not yet done too often."""
        restarts = int(str(run.labels.get(_RESTARTS_LABEL, 0))) + 1
        if restarts > configuration.max_restarts:
            return False
        await through_outages(lambda: self.client.update_flow_run_labels(run.id, {_RESTARTS_LABEL: restarts}))
        # Otherwise a run that once retried in its process would be offered to no worker again.
        policy = run.empirical_policy.model_copy(update={"retry_type": "reschedule"})
        await through_outages(lambda: self.client.update_flow_run(run.id, empirical_policy=policy))
        message = f"Its sandbox was stopped; restart {restarts} of {configuration.max_restarts}"
        await self.set_state(run.id, AwaitingRetry(message=message), force=True)
        return True

    async def _note_cost(
        self, flow_run: FlowRun, sandboxes: Sandboxes, sandbox: Sandbox, listed_usd: float | None
    ) -> None:
        """Add what Modal bills to the run's labels, and say how the list price compares, where it is known."""
        logger = self.get_flow_run_logger(flow_run)
        by_list = f"; ${listed_usd:.4f} by the list price" if listed_usd else ""
        try:
            billed = await sandboxes.billed_usd(sandbox)
        except ModalFailure as failure:
            logger.info("What Modal bills could not be asked: %s%s", failure, by_list)
            return
        if billed is None:
            logger.info("Modal has no figure of what it bills yet%s", by_list)
            return
        logger.info("Modal bills $%.4f so far%s", billed, by_list)
        run = await self.read(flow_run.id)
        if run is not None:
            total = float(str(run.labels.get(_BILLED_LABEL, 0.0))) + billed
            await through_outages(lambda: self.client.update_flow_run_labels(run.id, {_BILLED_LABEL: total}))

    # States.

    async def give_up(self, flow_run: FlowRun, failure: CrucibleError) -> None:
        """End a run that came to nothing, with the failure's own name and words."""
        self.get_flow_run_logger(flow_run).error("%s", failure)
        name = failure.state_name if isinstance(failure, ModalFailure) else "Crashed"
        await self.set_state(flow_run.id, Crashed(name=name, message=str(failure)))

    async def set_state(self, flow_run_id: UUID, state: State[Any], *, force: bool = False) -> None:
        """Propose a state; the server keeps a final one that is there already, unless `force` says otherwise."""
        for pause in _PAUSES_SECONDS:
            try:
                answer = await through_outages(lambda: self.client.set_flow_run_state(flow_run_id, state, force=force))
            except ObjectNotFound:
                return
            run = await self.read(flow_run_id)
            if answer.status == SetStateStatus.ACCEPT or run is None or run.state is None or run.state.is_final():
                return
            self._logger.warning("The server did not take %s for flow run %s; again in %d s", state, flow_run_id, pause)
            await asyncio.sleep(pause)

    async def read(self, flow_run_id: UUID) -> FlowRun | None:
        """The flow run as it is now; None when it was deleted."""
        try:
            return await through_outages(lambda: self.client.read_flow_run(flow_run_id))
        except ObjectNotFound:
            return None


def _has_moved_on(run: FlowRun, attempt: int, sandbox: Sandbox | None) -> bool:
    """Whether the run has left the attempt that the sandbox was made for. A run counts up whenever it starts to run."""
    assert run.state is not None
    if run.state.type in (StateType.SCHEDULED, StateType.PENDING):
        return run.run_count > attempt and run.empirical_policy.retry_type != "in_process"
    elsewhere = sandbox is not None and run.infrastructure_pid not in (None, pid_of(sandbox))
    return elsewhere and run.run_count > attempt + 1


def _look_seconds() -> float:
    return float(get_current_settings().worker.query_seconds)
