"""`crucible rehearse slurm`: a cluster on this machine, its pool on your Prefect server, and its worker."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from crucible.errors import ServiceError
from crucible.home import crucible_home
from crucible.local.state import PROJECT
from crucible.pools.slurm.pool import POOL
from crucible.rehearsal.slurm.cluster import PARTITION, LocalCluster
from crucible.rehearsal.worker_process import WorkerProcess


@contextmanager
def rehearsed_slurm(say: Callable[[str], None]) -> Iterator[LocalCluster]:
    """Bring all of it up; take it down at the end.

    Raises `ServiceError` when no server answers or Slurm cannot be started.
    """
    folder = crucible_home() / "rehearsal" / "slurm"
    say("Bringing up a Slurm of two nodes on this machine")
    with LocalCluster(folder) as cluster:
        environment = {**os.environ, **cluster.environment}
        say("Putting its pool on the Prefect server")
        jobs = {"CRUCIBLE_HOME": str(crucible_home()), "PYTHONPATH": str(PROJECT), **cluster.environment}
        command = [sys.executable, "-m", "crucible.cli.main", "slurm", "setup", "--partition", PARTITION, "--gpus", "0"]
        command += [part for name, value in jobs.items() for part in ("--env", f"{name}={value}")]
        command += ["--set", "poll_seconds=2", "--set", "cpus=3", "--set", f"log_folder={folder / 'output'}"]
        done = subprocess.run(command, env=environment, cwd=PROJECT, capture_output=True, text=True, check=False)
        if done.returncode:
            raise ServiceError((done.stderr or done.stdout).strip().removeprefix("error: "))
        say("Starting its worker")
        worker = WorkerProcess(POOL, POOL, environment, folder / "worker.log")
        worker.start()
        try:
            yield cluster
        finally:
            worker.stop()
