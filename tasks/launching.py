"""Attempts as Prefect flow runs: the launcher through which the supervisor brings them to life on work pools."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun, StateType
from prefect.exceptions import PrefectException

from crucible.agent.nodes import MISSING_NODE
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, JobSpec, Launch, Outcome
from crucible.pools.aws.diagnosis import diagnose
from crucible.pools.common.failures import QUEUED
from crucible.pools.modal import failures as modal
from crucible.pools.skypilot import failures as skypilot
from crucible.pools.skypilot import offers as skypilot_offers
from crucible.pools.slurm import failures as slurm
from crucible.resources import Resources
from crucible.supervision.launcher import Hint, Launcher, PoolSays
from tasks.deployment_runs import cancel_run, start_run
from tasks.job_variables import given_for
from tasks.observing import emit
from tasks.queues import AttemptQueue

FLOW = "train"
EC2_POOLS = ("ec2-spot", "ec2-on-demand")
PERMANENT = modal.PERMANENT | slurm.PERMANENT | skypilot.PERMANENT
"""Names of states of a run that another attempt on the same pool would only repeat."""

_ENDED = {StateType.CRASHED, StateType.FAILED, StateType.COMPLETED, StateType.CANCELLED}


def fewer_nodes(job: Job, launch: Launch, wanted: Resources) -> dict[str, Any]:
    """The least of a range of nodes, where the attempt before waited in vain for one of more of them.

    Slurm starts as many of a range as are free; on EC2 each machine is a request of its own, which may not be granted.
    """
    least, most = wanted.node_range
    if least == most or launch.pool not in EC2_POOLS or launch.number == 1:
        return {}
    outcome = job.attempt(launch.number - 1).read_outcome()
    missing = outcome is not None and any(n.source == MISSING_NODE for n in outcome.notifications)
    return {"nodes": str(least)} if missing else {}


class PrefectLauncher:
    """Starts attempt N of a job as a flow run of `train/<pool>`.

    The idempotency key is the job's address and the decision on record: launching it twice, from whatever process,
    gives the same flow run. Of a job that was deleted and made again under its old name, attempt 1 is another decision.
    """

    def __init__(self, store: str, project: str, owner: str, resources: Resources | None = None) -> None:
        self.store, self.project, self.owner = store, project, owner
        self.resources = resources or Resources()
        self._runs: dict[int, FlowRun] = {}
        self._queue = AttemptQueue()

    def launch(self, job: Job, launch: Launch) -> None:
        spec, deployment = job.read_spec(), f"{FLOW}/{launch.pool}"
        tags = [
            f"job:{job.job_id}",
            f"stage:{spec.stage}",
            f"pool:{launch.pool}",
            f"attempt:{launch.number}",
            f"project:{self.project}",
        ]
        if launch.instance:
            tags.append(f"instance:{launch.instance}")
        if self.owner:
            tags.append(f"owner:{self.owner}")
        run = start_run(
            deployment,
            missing=f"pool: there is no deployment {deployment!r} on this server; `crucible up` deploys the pools that "
            f"are ready, `crucible doctor` says what the others need",
            what="the attempt",
            parameters={"job": job.job_id, "attempt": launch.number, "store": self.store},
            flow_run_name=f"{job.job_id}-attempt-{launch.number}",
            tags=tags,
            idempotency_key=f"{job.store.uri}/{launch.number}/{launch.decided_at.timestamp():.6f}",
            job_variables=self._job_variables(job, spec, launch),
            # Prefect cancels subflows with their parent; a superseded or restarted supervisor is no reason to.
            as_subflow=False,
        )
        self._runs[launch.number] = run
        self._queue.keep_supervisors_out(run)

    def _job_variables(self, job: Job, spec: JobSpec, launch: Launch) -> dict[str, Any]:
        """What the pool has to know: what was asked for, the machine that was chosen, and whose costs these are."""
        chosen: dict[str, Any] = {}
        if launch.pool == "modal" and launch.instance:
            chosen = {"gpu": [launch.instance], "usd_per_hour": launch.usd_per_hour}
        if launch.pool == "skypilot" and launch.instance:
            chosen = skypilot_offers.job_variables(launch.instance)
        if launch.pool in EC2_POOLS:
            tags = {"job": job.job_id, "stage": spec.stage, "project": self.project, "owner": self.owner}
            chosen = {name: value for name, value in tags.items() if value}
        return (
            self.resources.job_variables(launch.pool)
            | fewer_nodes(job, launch, self.resources)
            | (given_for(job, spec, launch.pool) | chosen)
        )

    def hint(self, job: Job, launch: Launch) -> Hint:
        run = self._read(launch)
        if run is None or run.state is None:
            return Hint(PoolSays.UNKNOWN)
        message = f"{run.state.name}: {run.state.message}" if run.state.message else run.state.name or ""
        if run.state.type in _ENDED:
            cancelled = run.state.type is StateType.CANCELLED
            if launch.pool in EC2_POOLS and (found := diagnose(message)).permanent:
                # The observer's states say already what AWS means; a task that ECS refused has AWS's message only.
                text = message if found.summary in message else str(found)
                return Hint(PoolSays.ENDED, text, cancelled=cancelled, permanent=True)
            return Hint(PoolSays.ENDED, message, cancelled=cancelled, permanent=run.state.name in PERMANENT)
        if run.state.type in (StateType.RUNNING, StateType.CANCELLING):
            return Hint(PoolSays.ALIVE, message)
        if run.state.name == QUEUED:  # in the pool's own queue, where its turn comes
            return Hint(PoolSays.WAITING, message, queued=True)
        slots = self._queue.slots(run)
        if slots is not None:
            return Hint(PoolSays.WAITING, f"waits for one of the {slots} slots of {run.work_pool_name}", queued=True)
        if self._queue.unserved:
            nobody = f"no worker polls the pool {run.work_pool_name}; `crucible doctor` says how to start one"
            return Hint(PoolSays.WAITING, nobody, unserved=True)
        return Hint(PoolSays.WAITING, message)

    def retire(self, job: Job, launch: Launch, outcome: Outcome) -> None:
        """A run that still believes in itself is cancelled, so that its worker ends what is left of it."""
        if outcome.end_reason is EndReason.LOST:
            emit("lost", job.job_id, f"attempt {launch.number} on {launch.pool}: {outcome.message}")
        if outcome.decided_by == "agent":
            return
        run = self._read(launch)
        if run is None or run.state is None or run.state.type in _ENDED:
            return
        cancel_run(run, f"attempt {launch.number} {outcome.label}: {outcome.message}")

    def _read(self, launch: Launch) -> FlowRun | None:
        run = self._runs.get(launch.number)
        if run is None:
            return None
        try:
            with get_client(sync_client=True) as client:
                return client.read_flow_run(run.id)
        except (httpx.HTTPError, PrefectException):
            return None


@dataclass(frozen=True)
class HereOrElsewhere:
    """Two launchers: one for the pool `local`, one for all others."""

    here: Launcher
    elsewhere: Launcher

    def launch(self, job: Job, launch: Launch) -> None:
        self._of(launch).launch(job, launch)

    def hint(self, job: Job, launch: Launch) -> Hint:
        return self._of(launch).hint(job, launch)

    def retire(self, job: Job, launch: Launch, outcome: Outcome) -> None:
        self._of(launch).retire(job, launch, outcome)

    def _of(self, launch: Launch) -> Launcher:
        return self.here if launch.pool == "local" else self.elsewhere
