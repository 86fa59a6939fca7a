"""Workers that give every attempt of a flow run a machine of its own: a sandbox, a batch job.

`MachineWorker` starts the machine, watches it to its end, asks it to stop once the run has no use for it, and gives the
run the state that the end calls for. A pool says how to start a machine, and its `Machine` how to wait for the end.
"""

from __future__ import annotations

import abc
import asyncio
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State, StateType
from prefect.states import Cancelled, Pending

from crucible.errors import CrucibleError
from crucible.pools.common.api_retry import retry_while_away
from crucible.pools.common.failures import QUEUED, NothingRuns, PoolFailure
from crucible.pools.common.watching import WatchingResult, WatchingWorker, age_seconds, has_moved_on, look_seconds

if TYPE_CHECKING:
    import anyio.abc

T = TypeVar("T")
_LONGEST_PAUSE_SECONDS = 60.0


class NotWanted(PoolFailure):
    """The run was cancelled, or went elsewhere, before it had a machine."""

    state_name = "NotWanted"


def pid_of(kind: str, name: str) -> str:
    """What stands in a flow run's `infrastructure_pid` for a machine of a pool of that type."""
    return f"{kind}:{name}"


def name_of(infrastructure_pid: str) -> str:
    """The machine that a flow run's `infrastructure_pid` stands for."""
    return infrastructure_pid.partition(":")[2]


def run_and_attempt(run: str, attempt: str) -> tuple[UUID, int] | None:
    """Flow run and attempt from a machine's name; None where the name is not of that form."""
    try:
        return (UUID(run), int(attempt)) if attempt.isdecimal() else None
    except ValueError:
        return None


@dataclass(frozen=True)
class ListedMachine:
    """A machine of this pool as the pool lists it."""

    name: str
    flow_run_id: UUID
    attempt: int
    """The run's `run_count` when the machine was started."""
    terminate: Callable[[], Awaitable[None]]
    """End it at once. Raises `PoolFailure`, `NothingRuns` where it is gone."""
    note: str = ""
    """What the log should say of it besides."""


class Machine(abc.ABC):
    """What runs one attempt of a flow run."""

    name: str
    """As people know it: the id of a sandbox, of a batch job."""
    pid: str
    """As the flow run's `infrastructure_pid` has it."""

    @abc.abstractmethod
    async def end(self) -> PoolFailure:
        """Wait for the end; returns what it is for a flow run that has no final state of its own.

        Raises:
            PoolFailure: the pool does not know the machine any more.
        """

    async def ask_to_stop(self, *, cancelled: bool) -> None:
        """Ask it to save and leave; `cancelled`: a person wants no further attempt.

        By default nothing, where the flow run's own process finds that out.
        """
        return

    @abc.abstractmethod
    async def terminate(self) -> None:
        """End it at once. Raises `PoolFailure` when the pool does not do it."""


class MachineWorker(WatchingWorker, abc.ABC):
    """A worker with one machine per attempt. Its job configuration has `grace_seconds` and `max_restarts`."""

    noun: ClassVar[str] = "machine"
    lost: ClassVar[type[NothingRuns]] = NothingRuns
    """The failure of a run that has no machine any more."""
    restartable: ClassVar[tuple[type[PoolFailure], ...]] = ()
    """Ends after which `max_restarts` puts the run back for a new machine."""

    @abc.abstractmethod
    async def start_machine(self, flow_run: FlowRun, configuration: Any) -> Machine:
        """Start the attempt's machine, or find the one that a worker that died has started.

        Raises:
            CrucibleError: there is none.
        """

    @abc.abstractmethod
    async def list_machines(self, configuration: Any, run: FlowRun | None = None) -> list[ListedMachine]:
        """This pool's machines that still run; with a `run`, all that are on record, of that run at least.

        Raises:
            PoolFailure: they cannot be listed.
        """

    @abc.abstractmethod
    async def find_machine(self, run: FlowRun, configuration: Any, name: str) -> Machine:
        """The machine of that name, which another worker has started for the run.

        Raises:
            NothingRuns: the pool does not know it any more.
        """

    async def run(
        self, flow_run: FlowRun, configuration: Any, task_status: anyio.abc.TaskStatus[Any] | None = None
    ) -> WatchingResult:
        """Run one attempt of a flow run to its end."""
        self.watched.add(flow_run.id)
        try:
            try:
                machine = await self.start_machine(flow_run, configuration)
            except CrucibleError as failure:
                await self.settle(flow_run, flow_run.run_count, configuration, None, failure)
                if task_status:
                    task_status.started(failure)  # an exception tells the base class that there is nothing to kill
                return WatchingResult(identifier="")
            if task_status:
                task_status.started(machine.pid)
            await self.watch(flow_run, flow_run.run_count, configuration, machine)
            return WatchingResult(identifier=machine.name)
        finally:
            self.release(flow_run.id)

    async def take_over(self, run: FlowRun) -> None:
        """Watch a run's newest machine from here on. Raises `NothingRuns` if there is none, and none is on record."""
        configuration = await self.configuration_of(run)
        listed = [one for one in await self.list_machines(configuration, run) if one.flow_run_id == run.id]
        if not listed:
            raise self.lost(f"The worker died before there was a {self.noun}")
        newest = max(listed, key=lambda one: one.attempt)
        machine = await self.find_machine(run, configuration, newest.name)
        if run.infrastructure_pid != machine.pid:
            await self.client.update_flow_run(run.id, infrastructure_pid=machine.pid)
        self.get_flow_run_logger(run).info("Worker %r watches %s %s now", self.name, self.noun, machine.name)
        await self.watch(run, newest.attempt, configuration, machine)

    async def end_abandoned(self, alive: set[UUID]) -> None:
        """Terminate machines of this pool whose run is over or was deleted."""
        configuration = await self.configuration_of_pool()
        try:
            listed = await self.list_machines(configuration)
        except PoolFailure as failure:
            self._logger.debug("Could not list each %s: %s", self.noun, failure)
            return
        for one in listed:
            if one.flow_run_id in alive or await self._is_needed(one.flow_run_id, configuration.grace_seconds):
                continue
            self._logger.warning("Terminating %s %s%s: its flow run is over", self.noun, one.name, one.note)
            try:
                await one.terminate()
            except NothingRuns:
                continue  # another worker was faster
            except PoolFailure as failure:
                self._logger.error("%s %s%s could not be terminated: %s", self.noun, one.name, one.note, failure)

    async def _is_needed(self, flow_run_id: UUID, grace_seconds: float) -> bool:
        """Whether a run is in this worker's hands, may still begin or go on, or ended a moment ago."""
        if self.has_in_hand(flow_run_id):
            return True
        run = await self.read(flow_run_id)
        if run is None or run.state is None:
            return False
        return not run.state.is_final() or age_seconds(run) < grace_seconds

    async def watch(self, flow_run: FlowRun, attempt: int, configuration: Any, machine: Machine) -> None:
        """Follow a machine to its end and give the run the state that this end calls for.

        `attempt` is the run's `run_count` when the machine was started.
        """
        try:
            failure = await self._end_of(flow_run, attempt, configuration, machine)
        except PoolFailure as lost:
            failure = lost
        await self.settle(flow_run, attempt, configuration, machine, failure)

    async def _end_of(self, flow_run: FlowRun, attempt: int, configuration: Any, machine: Machine) -> PoolFailure:
        """Wait for the end; once the run has no more use for the machine, ask it to stop, and terminate it when the
        grace is over."""
        ending = asyncio.create_task(machine.end())
        useless_since: float | None = None
        try:
            while not (await asyncio.wait({ending}, timeout=look_seconds()))[0]:
                if not await self.has_no_use(flow_run.id, attempt, machine.pid):
                    useless_since = None
                    continue
                if useless_since is None:
                    useless_since = time.monotonic()
                    await self._ask_to_stop(flow_run, machine)
                if time.monotonic() - useless_since >= configuration.grace_seconds:
                    await self._terminate(flow_run, machine)
            return ending.result()
        finally:
            ending.cancel()

    async def _ask_to_stop(self, flow_run: FlowRun, machine: Machine) -> None:
        run = await self.read(flow_run.id)
        cancelled = (
            run is not None and run.state is not None and (run.state.is_cancelling() or run.state.is_cancelled())
        )
        try:
            await machine.ask_to_stop(cancelled=cancelled)
        except PoolFailure as failure:
            self.get_flow_run_logger(flow_run).warning(
                "%s %s cannot be asked to stop: %s", self.noun, machine.name, failure
            )

    async def _terminate(self, flow_run: FlowRun, machine: Machine) -> None:
        logger = self.get_flow_run_logger(flow_run)
        logger.info("Terminating %s %s", self.noun, machine.name)
        try:
            await machine.terminate()
        except PoolFailure as failure:
            logger.warning("%s %s could not be terminated yet: %s", self.noun, machine.name, failure)

    async def show_queued(self, flow_run: FlowRun, words: str) -> None:
        """Let the run's state say why it has no machine yet; only as long as it waits.

        Prefect takes one Pending after another only by force, which may overrule what happens in the same moment: the
        run begins, or is cancelled. That is looked for afterwards, and put back.
        """
        run = await self.read(flow_run.id)
        if run is None or run.state is None or not run.state.is_pending() or run.state.message == words:
            return
        await self.set_state(run.id, Pending(name=QUEUED, message=words), force=True)
        for state in await retry_while_away(lambda: self.client.read_flow_run_states(run.id)):
            if state.timestamp > run.state.timestamp and not (state.is_pending() or state.is_scheduled()):
                again: State[Any] = State(type=state.type, name=state.name, message=state.message)
                await self.set_state(run.id, again, force=True)
                return

    async def settle(
        self, flow_run: FlowRun, attempt: int, configuration: Any, machine: Machine | None, failure: CrucibleError
    ) -> None:
        """Give the run a final state, if there is no machine, or it ended, and the run is still in this attempt."""
        run = await self.read(flow_run.id)
        pid = None if machine is None else machine.pid
        if run is None or run.state is None or has_moved_on(run, attempt, pid):
            return
        if run.state.is_cancelling():
            message = f"Its {self.noun} has ended" if machine is not None else f"Cancelled before it had a {self.noun}"
            await self.set_state(run.id, Cancelled(message=message))
        elif run.state.type in (StateType.PENDING, StateType.RUNNING):
            stopped = isinstance(failure, self.restartable)
            if stopped and await self.restart(run, configuration.max_restarts, f"Its {self.noun} was stopped"):
                return
            await self.give_up(run, failure)


async def persist(call: Callable[[], Awaitable[T]], first_pause: float, report: Callable[[PoolFailure], None]) -> T:
    """Ask until the pool answers: a machine goes on while the way to its pool is away.

    `first_pause`: seconds; later ones are longer, up to a minute, or twice the first. `report` gets the first failure.
    Raises `NothingRuns` at once.
    """
    pause, longest, reported = first_pause, max(2 * first_pause, _LONGEST_PAUSE_SECONDS), False
    while True:
        try:
            return await call()
        except NothingRuns:
            raise
        except PoolFailure as failure:
            if not reported:
                report(failure)
            reported = True
            await asyncio.sleep(pause)
            pause = min(2 * pause, longest)
