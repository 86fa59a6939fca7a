"""A Prefect worker of type `skypilot`: every attempt of a flow run is a cluster of one machine, brought up by SkyPilot.

    crucible sky setup --cloud gcp
    crucible sky pool --infra gcp/us-central1
    prefect worker start --pool skypilot --type skypilot --name skypilot-1

SkyPilot finds the machine, prepares it, and takes it down. It decides nothing else: where, which machine and whether
spot are named, its managed jobs are not used, and what the end of a machine means is decided by the attempt's own
records. A cluster has its attempt's name, so the next worker finds those of one that died. A machine that nobody needs
costs money: it takes itself down when it is idle, and the worker takes down those whose run is over.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID

from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import InfrastructureNotFound
from prefect.workers.base import BaseWorker

from crucible.errors import ConfigError, CrucibleError
from crucible.home import crucible_home
from crucible.jobs.records import EndReason, StopRequest
from crucible.pools.common.attempts import attempt_of, store_of
from crucible.pools.common.build_context import IGNORE_FILE, staged_context
from crucible.pools.common.machines import (
    ListedMachine,
    Machine,
    MachineWorker,
    name_of,
    persist,
    pid_of,
    run_and_attempt,
)
from crucible.pools.common.reach import is_here
from crucible.pools.common.watching import WatchingResult
from crucible.pools.skypilot.client import Cluster, Sky
from crucible.pools.skypilot.configuration import (
    SkyJobConfiguration,
    SkyVariables,
    cluster_name,
    prefix_of,
)
from crucible.pools.skypilot.environment import python_of
from crucible.pools.skypilot.failures import (
    ApiServerUnreachable,
    ClusterLost,
    NoCapacity,
    NotPrepared,
    OutOfReach,
    QuotaExceeded,
    RequestRefused,
    SkyFailure,
    end_of_task,
)
from crucible.pools.skypilot.offers import OWN_MACHINES

T = TypeVar("T")
_NOT_YET = ("INIT", "PENDING", "SETTING_UP")
_OVER = ("SUCCEEDED", "FAILED", "FAILED_SETUP", "FAILED_DRIVER", "CANCELLED")


class SkyWorker(MachineWorker, BaseWorker[SkyJobConfiguration, SkyVariables, WatchingResult]):
    """Runs flow runs on machines that SkyPilot brings up."""

    type = "skypilot"
    job_configuration = SkyJobConfiguration
    job_configuration_variables = SkyVariables
    _description = "Run each flow run on a machine of its own, on any cloud that SkyPilot reaches."
    _display_name = "SkyPilot"
    _documentation_url = "https://docs.skypilot.co"
    _logo_url = "https://docs.skypilot.co/en/latest/_static/favicon.ico"

    noun = "cluster"
    lost = ClusterLost
    restartable = (ClusterLost,)

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._skies: dict[tuple[Path, str], Sky] = {}

    async def __aexit__(self, *exc_info: Any) -> None:
        await super().__aexit__(*exc_info)
        for sky in self._skies.values():
            await sky.close()

    def sky(self, configuration: SkyJobConfiguration) -> Sky:
        """SkyPilot as this configuration reaches it. Raises `SkyMissing`."""
        key = python_of(configuration.sky_python), configuration.api_server
        return self._skies.setdefault(key, Sky(*key))

    # What Prefect calls.

    async def kill_infrastructure(
        self, infrastructure_pid: str, configuration: SkyJobConfiguration, grace_seconds: int = 30
    ) -> None:
        """Take a cluster down."""
        sky, name = self.sky(configuration), name_of(infrastructure_pid)
        if not await sky.clusters([name]):
            raise InfrastructureNotFound(f"SkyPilot has no cluster {name}")
        await sky.down(name)

    async def start_machine(self, flow_run: FlowRun, configuration: SkyJobConfiguration) -> SkyMachine:
        """Begin to bring up the attempt's cluster, unless a worker that died has done it.

        Raises:
            SkyFailure: there is none.
        """
        if problem := configuration.problem():
            raise RequestRefused(problem)
        await self._require_reach(flow_run, configuration)
        sky, name = self.sky(configuration), cluster_name(str(self.work_pool.id), flow_run)
        machine = SkyMachine(self, flow_run, configuration, sky, name)
        if not await machine.exists():
            # The supervisor does not give up a run that waits in a queue; `start_minutes` is the limit here.
            await self.show_queued(flow_run, f"SkyPilot brings up cluster {name}")
            await machine.launch(configuration.node_range.most)
            where = "/".join(
                part for part in (configuration.infra, configuration.instance_type, configuration.accelerators) if part
            )
            spot = ", spot" if configuration.use_spot else ""
            several = f", {machine.nodes} nodes" if machine.nodes > 1 else ""
            self.get_flow_run_logger(flow_run).info(
                "SkyPilot brings up cluster %s (%s%s%s)", name, where, spot, several
            )
        return machine

    async def _require_reach(self, flow_run: FlowRun, configuration: SkyJobConfiguration) -> None:
        """The machine will have to find server and store. Raises `OutOfReach`."""
        if configuration.cloud in OWN_MACHINES:
            return
        api_url = configuration.env.get("PREFECT_API_URL") or ""
        if is_here(api_url):
            raise OutOfReach(
                f"PREFECT_API_URL: a machine on {configuration.cloud} cannot reach {api_url or 'no address'}, "
                "which is the worker's own machine; `crucible sky pool --env PREFECT_API_URL=https://…`"
            )
        try:
            store = await store_of(self, flow_run, configuration.env)
        except CrucibleError:
            return  # the attempt itself reports a store that it cannot open
        if store is not None and store.uri.startswith("file:"):
            raise OutOfReach(
                f"store: a machine on {configuration.cloud} cannot reach {store.uri}, a folder of this machine; use "
                "s3://bucket/prefix"
            )

    # Recovery of what another worker left.

    async def list_machines(
        self, configuration: SkyJobConfiguration, run: FlowRun | None = None
    ) -> list[ListedMachine]:
        sky = self.sky(configuration)

        def listed(name: str, resources: str = "") -> ListedMachine | None:
            found = self._parsed(name)
            note = f" ({resources}), which costs money"
            return found and ListedMachine(name, *found, terminate=lambda: sky.down(name), note=note)

        clusters = await sky.clusters()
        machines = [one for cluster in clusters if (one := listed(cluster.name, cluster.resources))]
        if run is not None and not any(one.flow_run_id == run.id for one in machines):  # on its way, perhaps
            pid = run.infrastructure_pid
            name = name_of(pid) if pid else cluster_name(str(self.work_pool.id), run)
            machines += [one] if (one := listed(name)) else []
        return machines

    async def find_machine(self, run: FlowRun, configuration: SkyJobConfiguration, name: str) -> SkyMachine:
        machine = SkyMachine(self, run, configuration, self.sky(configuration), name)
        if not await machine.exists():
            raise ClusterLost(f"SkyPilot knows no cluster {name} any more")
        return machine

    def _parsed(self, name: str) -> tuple[UUID, int] | None:
        """Flow run and attempt of a cluster of this pool; None for every other cluster."""
        prefix = prefix_of(str(self.work_pool.id))
        run, _, attempt = name.removeprefix(prefix).partition("-")
        return run_and_attempt(run, attempt) if name.startswith(prefix) else None

    async def request_stop(self, flow_run: FlowRun, configuration: SkyJobConfiguration, *, cancelled: bool) -> None:
        """Ask the attempt to save and leave. Raises `SkyFailure` if that cannot be put on record."""
        request = StopRequest(
            end_reason=EndReason.CANCELLED if cancelled else EndReason.INTERRUPTED,
            reason="cancelled in Prefect" if cancelled else "the flow run has no more use for this machine",
        )
        try:
            attempt = await attempt_of(self, flow_run, configuration.env)
            if attempt is not None:
                await asyncio.to_thread(attempt.request_stop, request)
        except CrucibleError as error:
            raise RequestRefused(f"no request to stop could be written: {error}") from error


class SkyMachine(Machine):
    """One cluster, from the request to its end."""

    def __init__(
        self, worker: SkyWorker, flow_run: FlowRun, configuration: SkyJobConfiguration, sky: Sky, name: str
    ) -> None:
        self._worker, self._flow_run, self._configuration = worker, flow_run, configuration
        self._sky = sky
        self._up = False
        self.name, self.pid = name, pid_of(worker.type, name)
        self.request: str | None = None
        """Of the launch, while it may still be under way."""
        self.nodes = configuration.node_range.most
        """How many machines were asked for last."""

    async def launch(self, nodes: int) -> None:
        """Begin to bring up so many machines, all or none. Raises `SkyFailure`."""
        self.nodes = nodes
        task = self._configuration.task(_copied(self._configuration.workdir), nodes)
        self.request = await self._sky.launch(self.name, task, self._configuration.autostop_minutes)

    async def exists(self) -> bool:
        """Whether the cluster is there, or on its way."""
        if (requests := await self._sky.launching(self.name)) and self.request is None:
            self.request = requests[0]
        return self.request is not None or bool(await self._sky.clusters([self.name]))

    async def end(self) -> SkyFailure:
        try:
            return await self._end()
        except ClusterLost:
            raise
        except SkyFailure as failure:
            await self._take_down()  # what came up halfway costs money, too
            return failure

    async def _end(self) -> SkyFailure:
        ready_by = time.monotonic() + 60 * self._configuration.start_minutes
        if self.request is not None:
            try:
                async with asyncio.timeout(60 * self._configuration.start_minutes):
                    await self._come_up()
            except TimeoutError:
                raise self._not_ready() from None
        while True:
            cluster = await self._persist(self._look)
            if cluster is None:
                raise ClusterLost(
                    f"cluster {self.name} is gone: its cloud reclaimed it, or somebody took it down. What was saved "
                    "stands in the attempt's own record"
                )
            if cluster.up:
                self._up = True
                state = await self._state()
                if state in _NOT_YET and time.monotonic() > ready_by:
                    raise self._not_ready()
                if state in _OVER:
                    printed = await self._last_lines()
                    await self._take_down()
                    return end_of_task(state, self.name, printed)
            await asyncio.sleep(self._configuration.poll_seconds)

    def _not_ready(self) -> NotPrepared:
        minutes = self._configuration.start_minutes
        return NotPrepared(f"cluster {self.name} was not ready within {minutes} minutes (start_minutes)")

    async def ask_to_stop(self, *, cancelled: bool) -> None:
        if not any(one.up for one in await self._sky.clusters([self.name])):
            await self.terminate()  # nothing runs there yet that could be saved
            return
        await self._worker.request_stop(self._flow_run, self._configuration, cancelled=cancelled)

    async def terminate(self) -> None:
        if self.request is not None and not self._up:
            with contextlib.suppress(SkyFailure):
                await self._sky.cancel(self.request)
        with contextlib.suppress(ClusterLost):
            await self._sky.down(self.name)

    async def _come_up(self) -> None:
        """Until SkyPilot has the cluster up and its task submitted. Raises what stood in its way."""
        least = self._configuration.node_range.least
        while self.request is not None:
            try:
                await self._sky.wait(self.request)
                self.request = None
            except (NoCapacity, QuotaExceeded) as none:
                if self.nodes == least:
                    raise
                self._log.warning("%s; asking for %d nodes instead of %d", none, least, self.nodes)
                await self.launch(least)
            except ApiServerUnreachable as away:
                if not await self._goes_on(away):
                    raise

    async def _goes_on(self, away: ApiServerUnreachable) -> bool:
        """Whether the launch is still under way, or done, once the API server answers again."""
        self._log.warning("%s; looking again for cluster %s", away, self.name)
        await asyncio.sleep(self._configuration.poll_seconds)
        if await self._persist(lambda: self._sky.launching(self.name)):
            return True
        cluster = await self._persist(self._look)
        if cluster is None or not cluster.up or await self._state() is None:
            return False
        self.request = None  # it came up meanwhile, and has its task
        return True

    async def _look(self) -> Cluster | None:
        found = await self._sky.clusters([self.name], refresh=True)
        return next(iter(found), None)

    async def _state(self) -> str | None:
        """Of the task; None where SkyPilot cannot say now: the next look shows whether the cluster is there."""
        try:
            return await self._sky.job(self.name)
        except SkyFailure as failure:
            self._log.debug("The task of cluster %s cannot be looked at: %s", self.name, failure)
            return None

    async def _last_lines(self) -> str:
        try:
            return await self._sky.last_lines(self.name)
        except SkyFailure:
            return ""

    async def _take_down(self) -> None:
        try:
            await self.terminate()
        except SkyFailure as failure:
            self._log.error("Cluster %s could not be taken down yet and costs money: %s", self.name, failure)

    async def _persist(self, call: Callable[[], Awaitable[T]]) -> T:
        pause = self._configuration.poll_seconds
        return await persist(call, pause, lambda failure: self._log.warning("%s; the machine goes on", failure))

    @property
    def _log(self) -> Any:
        return self._worker.get_flow_run_logger(self._flow_run)


def _copied(workdir: str) -> str:
    """The folder that SkyPilot copies: of a project with rules for images, only what images get."""
    if not workdir:
        return ""
    folder = Path(workdir).expanduser().absolute()
    if not (folder / IGNORE_FILE).is_file():
        return str(folder)
    try:
        return str(staged_context(folder, crucible_home() / "cache" / "skypilot"))
    except ConfigError:
        return str(folder)
