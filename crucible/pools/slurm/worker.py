"""A Prefect worker of type `slurm`: every attempt of a flow run is a batch job on a Slurm cluster.

    crucible slurm setup
    prefect worker start --pool slurm --type slurm --name slurm-1

The worker runs where `sbatch` works, or reaches such a login node over ssh. It needs no rights but yours and keeps no
state: a job carries its attempt's name, so the next worker finds the jobs of one that died. The end of a job does not
decide what it means for its work: the run gets a state that says what happened, and its supervisor looks at what was
saved.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar
from uuid import UUID

from prefect.client.schemas.objects import FlowRun, State
from prefect.exceptions import InfrastructureNotFound
from prefect.workers.base import BaseWorker

from crucible.errors import CrucibleError
from crucible.pools.common.attempts import attempt_of
from crucible.pools.common.machines import (
    ListedMachine,
    Machine,
    MachineWorker,
    name_of,
    persist,
    pid_of,
    run_and_attempt,
)
from crucible.pools.common.unconnected import recorded_end
from crucible.pools.common.watching import WatchingResult, has_moved_on
from crucible.pools.slurm.cluster import Cluster, Submission
from crucible.pools.slurm.configuration import SlurmJobConfiguration, SlurmVariables
from crucible.pools.slurm.failures import (
    ClusterUnreachable,
    JobForgotten,
    JobView,
    NeverStarts,
    NodeLost,
    Preempted,
    SlurmFailure,
    SubmissionRefused,
    TimeLimitReached,
    failure_of,
    waiting,
)
from crucible.pools.slurm.inventory import never_starts
from crucible.pools.slurm.shell import Shell

T = TypeVar("T")
_LOOKS_AFTER_SILENCE = 5
_LOOK_AGAIN_SECONDS = 5.0


class SlurmWorker(MachineWorker, BaseWorker[SlurmJobConfiguration, SlurmVariables, WatchingResult]):
    """Runs flow runs as jobs of a Slurm cluster."""

    type = "slurm"
    job_configuration = SlurmJobConfiguration
    job_configuration_variables = SlurmVariables
    _description = "Run each flow run as a batch job on a Slurm cluster, with your own account there."
    _display_name = "Slurm"
    _documentation_url = "https://slurm.schedmd.com/sbatch.html"
    _logo_url = "https://slurm.schedmd.com/slurm_logo.png"

    noun = "Slurm job"
    lost = JobForgotten
    restartable = (Preempted, NodeLost, TimeLimitReached)

    # What Prefect calls.

    async def kill_infrastructure(
        self, infrastructure_pid: str, configuration: SlurmJobConfiguration, grace_seconds: int = 30
    ) -> None:
        """Cancel a job; Slurm gives it KillWait seconds."""
        cluster, job_id = cluster_of(configuration), name_of(infrastructure_pid)
        job = await cluster.show(job_id)
        if job is None or job.over:
            raise InfrastructureNotFound(f"Slurm has no running job {job_id}")
        await cluster.cancel(job_id)

    async def start_machine(self, flow_run: FlowRun, configuration: SlurmJobConfiguration) -> SlurmJob:
        """Submit the attempt's job, unless a worker that died has done it.

        Raises:
            SlurmFailure: there is none.
        """
        cluster, comment = cluster_of(configuration), self._comment(flow_run.id, flow_run.run_count)
        wanted = Submission(
            name=configuration.job_name(flow_run),
            comment=comment,
            options=configuration.options(),
            script=configuration.script(),
            environment={name: value for name, value in configuration.env.items() if value is not None},
            workdir=configuration.workdir,
            log_folder=configuration.log_folder,
        )
        job_id = await cluster.find(wanted.name, comment)
        if job_id is None:
            if problem := await never_starts(cluster.shell, configuration):
                raise SubmissionRefused(problem)
            job_id = await self._submit(cluster, wanted)
            self.get_flow_run_logger(flow_run).info("Submitted Slurm job %s", job_id)
        return SlurmJob(self, flow_run, configuration, cluster, job_id)

    async def _submit(self, cluster: Cluster, wanted: Submission) -> str:
        try:
            return await cluster.submit(wanted)
        except ClusterUnreachable:
            # The controller may have taken the job before the answer got lost.
            for _ in range(_LOOKS_AFTER_SILENCE):
                await asyncio.sleep(_LOOK_AGAIN_SECONDS)
                with contextlib.suppress(ClusterUnreachable):
                    if job_id := await cluster.find(wanted.name, wanted.comment):
                        return job_id
                    break
            raise

    # Recovery of what another worker left.

    async def list_machines(
        self, configuration: SlurmJobConfiguration, run: FlowRun | None = None
    ) -> list[ListedMachine]:
        cluster = cluster_of(configuration)
        only = () if run is not None else ("--states=PENDING,RUNNING,SUSPENDED,CONFIGURING",)

        def listed(job_id: str, flow_run_id: UUID, attempt: int) -> ListedMachine:
            return ListedMachine(job_id, flow_run_id, attempt, lambda: cluster.cancel(job_id))

        found = [
            listed(job.id, *parsed)
            for job in await cluster.list(*only)
            if (parsed := self._parsed(job.comment)) is not None
        ]
        if run is not None and run.infrastructure_pid and not any(one.flow_run_id == run.id for one in found):
            found.append(listed(name_of(run.infrastructure_pid), run.id, max(0, run.run_count - 1)))
        return found

    async def find_machine(self, run: FlowRun, configuration: SlurmJobConfiguration, name: str) -> SlurmJob:
        return SlurmJob(self, run, configuration, cluster_of(configuration), name)

    def _comment(self, flow_run_id: UUID, attempt: int) -> str:
        """By which a job is found again. The pool's id keeps the jobs of several Prefect servers apart."""
        return f"{flow_run_id}:{attempt}:{self.work_pool.id}"

    def _parsed(self, comment: str) -> tuple[UUID, int] | None:
        """Flow run and attempt of a job of this pool; None for every other job."""
        run, _, rest = comment.partition(":")
        attempt, _, pool = rest.partition(":")
        return run_and_attempt(run, attempt) if pool == str(self.work_pool.id) else None

    async def settle(
        self,
        flow_run: FlowRun,
        attempt: int,
        configuration: SlurmJobConfiguration,
        machine: Machine | None,
        failure: CrucibleError,
    ) -> None:
        """As every worker with machines does it, unless the attempt ended well on a node that reaches no server."""
        run = await self.read(flow_run.id) if machine is not None else None
        if machine is not None and run is not None and run.state is not None and not run.state.is_final():
            ended = await self._recorded_end(run, configuration)
            if ended is not None and not has_moved_on(run, attempt, machine.pid):
                await self.set_state(run.id, ended, force=True)
                return
        await super().settle(flow_run, attempt, configuration, machine, failure)

    async def _recorded_end(self, run: FlowRun, configuration: SlurmJobConfiguration) -> State[Any] | None:
        with contextlib.suppress(CrucibleError):  # a store that this machine cannot open says nothing
            attempt = await attempt_of(self, run, configuration.env)
            return None if attempt is None else await asyncio.to_thread(recorded_end, attempt)
        return None


class SlurmJob(Machine):
    """One batch job, from the queue to its end."""

    def __init__(
        self,
        worker: SlurmWorker,
        flow_run: FlowRun,
        configuration: SlurmJobConfiguration,
        cluster: Cluster,
        job_id: str,
    ) -> None:
        self._worker, self._flow_run, self._configuration = worker, flow_run, configuration
        self._cluster = cluster
        self.name, self.pid = job_id, pid_of(worker.type, job_id)

    async def end(self) -> SlurmFailure:
        reason = ""
        while True:
            job = await self._show()
            if job.over:
                # An agent that was preempted has saved and left by itself: the run has its own final state then.
                return failure_of(job, await self._cluster.last_output(job))
            if job.pending and job.reason != reason:
                reason = job.reason
                why = waiting(reason)
                if why.hopeless:
                    await self._persist(lambda: self._cluster.cancel(self.name))
                    return NeverStarts(f"Slurm job {self.name} would never start: {why.words} ({reason})")
                await self._worker.show_queued(self._flow_run, f"Slurm job {self.name} is in the queue: {why.words}")
            await asyncio.sleep(self._configuration.poll_seconds)

    async def ask_to_stop(self, *, cancelled: bool) -> None:
        job = await self._cluster.show(self.name)
        if job is not None and job.pending:
            await self._cluster.cancel(self.name)
        elif job is not None and not job.over:
            await self._cluster.signal_batch(self.name, "USR1" if cancelled else "TERM")

    async def terminate(self) -> None:
        await self._cluster.cancel(self.name)

    async def _show(self) -> JobView:
        """The job as it is now. Raises `JobForgotten`."""
        job = await self._persist(lambda: self._cluster.show(self.name))
        if job is None:
            raise JobForgotten(
                f"Slurm knows no job {self.name} any more; what was saved stands in the attempt's own record"
            )
        return job

    async def _persist(self, call: Callable[[], Awaitable[T]]) -> T:
        logger = self._worker.get_flow_run_logger(self._flow_run)
        pause = self._configuration.poll_seconds
        return await persist(call, pause, lambda failure: logger.warning("%s; the job goes on", failure))


def cluster_of(configuration: SlurmJobConfiguration) -> Cluster:
    """The cluster that a configuration names."""
    return Cluster(Shell(configuration.login_node))
