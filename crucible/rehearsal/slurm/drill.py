"""The stage of a drill on Slurm: the local set-up, a real cluster on this machine, the pool `slurm` and its worker."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from crucible.errors import ServiceError
from crucible.local.access import prefect_settings
from crucible.local.state import PROJECT, Home
from crucible.pools.common.registration import FLOW
from crucible.pools.slurm.pool import POOL
from crucible.rehearsal.drill.stage import Stage, local_stage
from crucible.rehearsal.slurm.cluster import KILL_WAIT_SECONDS, PARTITION, LocalCluster
from crucible.rehearsal.slurm.faults import Hands, slurm_faults
from crucible.rehearsal.worker_process import WorkerProcess

DEPLOYMENT = f"{FLOW}/{POOL}"
_END_SECONDS = 60.0
_CPUS = 3
"""Of a node's four: an urgent job takes all of them, and so preempts."""


@dataclass
class SlurmStage(Stage):
    """A local set-up with a Slurm cluster beside it."""

    cluster: LocalCluster = field(kw_only=True)

    def replace_machine(self) -> None:
        """Nothing to do: the next job gets whichever node is free."""

    def still_running(self) -> list[str]:
        """Jobs that outlived the training."""
        deadline = time.monotonic() + _END_SECONDS
        while (left := self._jobs()) and time.monotonic() < deadline:
            time.sleep(0.5)
        return left

    def _jobs(self) -> list[str]:
        try:
            return [f"Slurm job {job_id} ({state})" for job_id, state, _ in self.cluster.jobs()]
        except ServiceError as error:
            return [str(error)]


@contextmanager
def slurm_stage(folder: Path, *, s3: bool = False) -> Iterator[SlurmStage]:
    """Bring up everything below `folder`; take it down at the end.

    Raises `ServiceError` when a part of it does not come up, Slurm's packages for one.
    """
    with LocalCluster(folder / "slurm") as cluster, local_stage(folder, s3=s3) as local:
        environment = {**local.environment, **cluster.environment}
        local.environment = environment  # what talks to the cluster has to find it
        local.crucible(*setup_arguments(local, cluster))
        worker = WorkerProcess(POOL, POOL, environment, local.home.log("slurm-worker"))
        worker.start()
        try:
            hands = Hands(
                cluster,
                worker,
                lambda minutes: _let_live(local.home, minutes),
                lambda job_id: local.crucible("jobs", "continue", job_id),
            )
            parameters = {"pool": POOL}
            yield SlurmStage(
                local.home,
                environment,
                local.store,
                slurm_faults(hands),
                parameters,
                local.metadata,
                cluster=cluster,
            )
        finally:
            worker.stop()


def setup_arguments(local: Stage, cluster: LocalCluster) -> list[str]:
    """Of `crucible slurm setup` for the cluster: jobs use this project and its environment as they are here."""
    jobs_environment = {
        **{name: value for name, value in local.environment.items() if name.startswith("AWS_")},
        **cluster.environment,
        # What is measured once per machine decides the last bits: jobs and the undisturbed run share it.
        "CRUCIBLE_HOME": str(local.home.root),
        "CRUCIBLE_STORE": local.environment["CRUCIBLE_STORE"],
        "PYTHONPATH": str(PROJECT),
        "OMP_NUM_THREADS": "1",
    }
    settings = {
        "partition": PARTITION,
        "cpus": _CPUS,
        "venv": sys.prefix,
        "workdir": PROJECT,
        "log_folder": local.home.root / "logs" / "slurm",
        "poll_seconds": 1,
        "grace_seconds": KILL_WAIT_SECONDS,
    }
    return [
        *("slurm", "setup"),
        *(part for name, value in jobs_environment.items() for part in ("--env", f"{name}={value}")),
        *(part for name, value in settings.items() for part in ("--set", f"{name}={value}")),
    ]


def _let_live(home: Home, minutes: int | None) -> None:
    """The time limit of jobs to come; None: the partition's own."""
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import DeploymentUpdate

    variables = {} if minutes is None else {"time_limit_minutes": minutes}
    with prefect_settings(home), get_client(sync_client=True) as client:
        deployment = client.read_deployment_by_name(DEPLOYMENT)
        client.update_deployment(deployment.id, DeploymentUpdate(job_variables=variables))
