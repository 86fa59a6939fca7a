"""A Prefect worker of type `modal`, for your own server: every flow run in a sandbox on Modal.

    prefect work-pool create modal --type modal
    prefect worker start --pool modal --type modal --name modal-1

One attempt of a flow run is one sandbox, named after it. The worker may die at any time: the next one finds the
sandboxes and continues to watch them (`crucible.pools.common.watching`). The end of a sandbox does not decide what it
means for its work: the run gets a state that says what happened, and its supervisor looks at what was saved.
"""

from __future__ import annotations

import asyncio
import time
from typing import TYPE_CHECKING, Any
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import InfrastructureNotFound
from prefect.logging.loggers import flow_run_logger
from prefect.states import Cancelled
from prefect.workers.base import BaseWorker

from crucible.errors import CrucibleError
from crucible.pools.common.api_retry import retry_while_away
from crucible.pools.common.watching import WatchingResult, WatchingWorker, age_seconds, has_moved_on, look_seconds
from crucible.pools.modal.configuration import (
    ModalJobConfiguration,
    ModalVariables,
    pid_of,
    sandbox_id,
    sandbox_name,
    tag_value,
)
from crucible.pools.modal.failures import (
    End,
    LifetimeReached,
    ModalFailure,
    NotWanted,
    SandboxGone,
    SandboxStopped,
    failure_of,
)

if TYPE_CHECKING:  # Modal's SDK is loaded with the first flow run: every worker of every type imports this module.
    import anyio.abc
    from modal import Sandbox

    from crucible.pools.modal.sandboxes import Sandboxes

_BILLED_LABEL = "modal.billed_usd"
_LAST_OUTPUT_SECONDS = 5.0


class ModalWorker(WatchingWorker, BaseWorker[ModalJobConfiguration, ModalVariables, WatchingResult]):
    """Runs flow runs in Modal sandboxes."""

    type = "modal"
    job_configuration = ModalJobConfiguration
    job_configuration_variables = ModalVariables
    _description = "Run each flow run in a sandbox on Modal: CPUs and GPUs in seconds, billed by the second."
    _display_name = "Modal"
    _documentation_url = "https://modal.com/docs/guide/sandboxes"
    _logo_url = "https://modal.com/assets/favicon.svg"

    # What Prefect calls.

    async def run(
        self,
        flow_run: FlowRun,
        configuration: ModalJobConfiguration,
        task_status: anyio.abc.TaskStatus[Any] | None = None,
    ) -> WatchingResult:
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
                return WatchingResult(identifier="")
            if task_status:
                task_status.started(pid_of(sandbox.object_id))
            await self.watch(flow_run, flow_run.run_count, configuration, sandboxes, sandbox)
            return WatchingResult(identifier=sandbox.object_id)
        finally:
            self.release(flow_run.id)

    async def kill_infrastructure(
        self, infrastructure_pid: str, configuration: ModalJobConfiguration, grace_seconds: int = 30
    ) -> None:
        """Terminate a sandbox at once; Modal knows no grace."""
        sandboxes = await self.connect(configuration)
        try:
            await sandboxes.terminate(await sandboxes.find(sandbox_id(infrastructure_pid)))
        except SandboxGone as gone:
            raise InfrastructureNotFound(str(gone)) from gone

    # Recovery of what another worker left.

    async def take_over(self, run: FlowRun) -> None:
        """Watch a run's sandbox from here on. Raises `SandboxGone` if there is none, and none is on record."""
        configuration = await self.configuration_of(run)
        sandboxes = await self.connect(configuration, run)
        sandbox, attempt = await self._sandbox_of(run, sandboxes)
        self.get_flow_run_logger(run).info("Worker %r watches sandbox %s now", self.name, sandbox.object_id)
        await self.watch(run, attempt, configuration, sandboxes, sandbox, taken_over=True)

    async def _sandbox_of(self, run: FlowRun, sandboxes: Sandboxes) -> tuple[Sandbox, int]:
        """The newest sandbox of a run, and the attempt it was made for."""
        running = await sandboxes.running({"prefect-flow-run-id": str(run.id)})
        if running:
            sandbox, tags = max(running, key=lambda found: int(found[1]["prefect-attempt"]))
            if run.infrastructure_pid != pid_of(sandbox.object_id):
                await self.client.update_flow_run(run.id, infrastructure_pid=pid_of(sandbox.object_id))
        elif run.infrastructure_pid:
            sandbox = await sandboxes.find(sandbox_id(run.infrastructure_pid))
            tags = await sandboxes.tags(sandbox)
        else:
            raise SandboxGone("The worker died before there was a sandbox")
        return sandbox, int(tags["prefect-attempt"])

    async def end_abandoned(self, alive: set[UUID]) -> None:
        """Terminate sandboxes of this pool whose run is over or was deleted."""
        configuration = await self.configuration_of_pool()
        try:
            sandboxes = await self.connect(configuration)
            running = await sandboxes.running({"prefect-work-pool": tag_value(self.work_pool.name)})
        except ModalFailure as failure:
            self._logger.debug("Could not list sandboxes: %s", failure)
            return
        for sandbox, tags in running:
            flow_run_id = UUID(tags["prefect-flow-run-id"])
            if flow_run_id in alive or self.has_in_hand(flow_run_id):
                continue
            run = await self.read(flow_run_id)
            waiting = run is not None and run.state is not None and not run.state.is_final()
            if waiting or (run is not None and age_seconds(run) < configuration.grace_seconds):
                continue
            self._logger.warning("Terminating sandbox %s: its flow run %s is over", sandbox.object_id, flow_run_id)
            await sandboxes.terminate(sandbox)

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
            while not (await asyncio.wait({creating}, timeout=look_seconds()))[0]:
                if await self.has_no_use(flow_run.id, flow_run.run_count, None):
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
        shown = await retry_while_away(lambda: lines_shown(self.client, flow_run.id)) if taken_over else None
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
            failure = failure_of(end, configuration, output.last_lines)
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
            while not (await asyncio.wait({ending}, timeout=look_seconds()))[0]:
                if not await self.has_no_use(flow_run.id, attempt, pid_of(sandbox.object_id)):
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
        pid = None if sandbox is None else pid_of(sandbox.object_id)
        if run is None or run.state is None or has_moved_on(run, attempt, pid):
            return
        if run.state.is_cancelling():
            message = "Its sandbox has ended" if sandbox is not None else "Cancelled before it had a sandbox"
            await self.set_state(run.id, Cancelled(message=message))
        elif run.state.type in (StateType.PENDING, StateType.RUNNING):
            stopped = isinstance(failure, SandboxStopped | LifetimeReached)
            if stopped and await self.restart(run, configuration.max_restarts, "Its sandbox was stopped"):
                return
            await self.give_up(run, failure)

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
            await retry_while_away(lambda: self.client.update_flow_run_labels(run.id, {_BILLED_LABEL: total}))
