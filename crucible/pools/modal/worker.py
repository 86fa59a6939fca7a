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
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import InfrastructureNotFound
from prefect.logging.loggers import flow_run_logger
from prefect.workers.base import BaseWorker

from crucible.pools.common.api_retry import retry_while_away
from crucible.pools.common.machines import ListedMachine, Machine, MachineWorker, NotWanted, name_of, pid_of
from crucible.pools.common.watching import WatchingResult, look_seconds
from crucible.pools.modal.configuration import POOL_ID_TAG, ModalJobConfiguration, ModalVariables, sandbox_name
from crucible.pools.modal.failures import (
    LifetimeReached,
    ModalFailure,
    SandboxGone,
    SandboxStopped,
    failure_of,
)

if TYPE_CHECKING:  # Modal's SDK is loaded with the first flow run: every worker of every type imports this module.
    from modal import Sandbox

    from crucible.pools.modal.sandboxes import Sandboxes

_BILLED_LABEL = "modal.billed_usd"
_LAST_OUTPUT_SECONDS = 5.0


class ModalWorker(MachineWorker, BaseWorker[ModalJobConfiguration, ModalVariables, WatchingResult]):
    """Runs flow runs in Modal sandboxes."""

    type = "modal"
    job_configuration = ModalJobConfiguration
    job_configuration_variables = ModalVariables
    _description = "Run each flow run in a sandbox on Modal: CPUs and GPUs in seconds, billed by the second."
    _display_name = "Modal"
    _documentation_url = "https://modal.com/docs/guide/sandboxes"
    _logo_url = "https://modal.com/assets/favicon.svg"

    noun = "sandbox"
    lost = SandboxGone
    restartable = (SandboxStopped, LifetimeReached)

    # What Prefect calls.

    async def kill_infrastructure(
        self, infrastructure_pid: str, configuration: ModalJobConfiguration, grace_seconds: int = 30
    ) -> None:
        """Terminate a sandbox at once; Modal knows no grace."""
        sandboxes = await self.connect(configuration)
        try:
            await sandboxes.terminate(await sandboxes.find(name_of(infrastructure_pid)))
        except SandboxGone as gone:
            raise InfrastructureNotFound(str(gone)) from gone

    # Recovery of what another worker left.

    async def list_machines(
        self, configuration: ModalJobConfiguration, run: FlowRun | None = None
    ) -> list[ListedMachine]:
        sandboxes = await self.connect(configuration, run)

        def listed(sandbox: Sandbox, tags: dict[str, str]) -> ListedMachine:
            run_id, attempt = UUID(tags["prefect-flow-run-id"]), int(tags["prefect-attempt"])
            return ListedMachine(sandbox.object_id, run_id, attempt, lambda: sandboxes.terminate(sandbox))

        if run is None:
            running = await sandboxes.running({POOL_ID_TAG: str(self.work_pool.id)})
        else:
            running = await sandboxes.running({"prefect-flow-run-id": str(run.id)})
            if not running and run.infrastructure_pid:
                ended = await sandboxes.find(name_of(run.infrastructure_pid))
                running = [(ended, await sandboxes.tags(ended))]
        return [listed(sandbox, tags) for sandbox, tags in running]

    async def find_machine(self, run: FlowRun, configuration: ModalJobConfiguration, name: str) -> SandboxMachine:
        sandboxes = await self.connect(configuration, run)
        return SandboxMachine(self, run, configuration, sandboxes, await sandboxes.find(name), taken_over=True)

    # One attempt.

    async def connect(self, configuration: ModalJobConfiguration, flow_run: FlowRun | None = None) -> Sandboxes:
        """Open the Modal account of a job configuration; messages go to the flow run's log, if there is one."""
        from crucible.pools.modal.sandboxes import Sandboxes

        logger = self.get_flow_run_logger(flow_run) if flow_run else self._logger
        return await Sandboxes.connect(configuration, logger)

    async def start_machine(self, flow_run: FlowRun, configuration: ModalJobConfiguration) -> SandboxMachine:
        """Create the attempt's sandbox.

        Raises:
            CrucibleError: there is none.
        """
        sandboxes = await self.connect(configuration, flow_run)
        sandbox = await self._start(flow_run, configuration, sandboxes)
        return SandboxMachine(self, flow_run, configuration, sandboxes, sandbox)

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


class SandboxMachine(Machine):
    """One sandbox: its output in the run's logs, its end, and what it has cost."""

    def __init__(
        self,
        worker: ModalWorker,
        flow_run: FlowRun,
        configuration: ModalJobConfiguration,
        sandboxes: Sandboxes,
        sandbox: Sandbox,
        *,
        taken_over: bool = False,
    ) -> None:
        """`taken_over`: another worker has watched it until now."""
        self._worker, self._flow_run, self._configuration = worker, flow_run, configuration
        self._sandboxes, self._sandbox, self._taken_over = sandboxes, sandbox, taken_over
        self.name, self.pid = sandbox.object_id, pid_of(worker.type, sandbox.object_id)

    async def end(self) -> ModalFailure:
        from crucible.pools.modal.output import STREAMS, Output, lines_shown

        began = time.monotonic()
        run, client = self._flow_run, self._worker.client
        shown = await retry_while_away(lambda: lines_shown(client, run.id)) if self._taken_over else None
        logs = {stream: flow_run_logger(run).getChild(f"sandbox.{stream}") for stream in STREAMS}

        def show(stream: str, line: str) -> None:
            logs[stream].info("%s", line)

        output = Output(self._sandbox, show if self._configuration.stream_output else None, shown)
        following = asyncio.create_task(output.follow())
        try:
            end = await self._sandboxes.end_of(self._sandbox)
            await asyncio.wait({following}, timeout=_LAST_OUTPUT_SECONDS)
        finally:
            following.cancel()
        hourly = self._configuration.usd_per_hour or 0.0
        await self._note_cost(None if self._taken_over else hourly / 3600 * (time.monotonic() - began))
        return failure_of(end, self._configuration, output.last_lines)

    async def terminate(self) -> None:
        await self._sandboxes.terminate(self._sandbox)

    async def _note_cost(self, listed_usd: float | None) -> None:
        """Add what Modal bills to the run's labels, and say how the list price compares, where it is known."""
        worker = self._worker
        logger = worker.get_flow_run_logger(self._flow_run)
        by_list = f"; ${listed_usd:.4f} by the list price" if listed_usd else ""
        try:
            billed = await self._sandboxes.billed_usd(self._sandbox)
        except ModalFailure as failure:
            logger.info("What Modal bills could not be asked: %s%s", failure, by_list)
            return
        if billed is None:
            logger.info("Modal has no figure of what it bills yet%s", by_list)
            return
        logger.info("Modal bills $%.4f so far%s", billed, by_list)
        run = await worker.read(self._flow_run.id)
        if run is not None:
            total = float(str(run.labels.get(_BILLED_LABEL, 0.0))) + billed
            await retry_while_away(lambda: worker.client.update_flow_run_labels(run.id, {_BILLED_LABEL: total}))
