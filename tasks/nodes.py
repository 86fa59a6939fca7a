"""The machines of an attempt: how many there are, what torchrun starts on each, and those that are this machine."""

from __future__ import annotations

import logging
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import takewhile
from typing import Any

from prefect.exceptions import MissingContextError
from prefect.logging import get_logger, get_run_logger

from crucible.agent.nodes import JOIN_SECONDS, Nodes, own_address
from crucible.billing.machine_price import EC2_POOLS
from crucible.catalog.this_machine import nvidia_gpus
from crucible.container import usable_cpus
from crucible.contract import Variable
from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec
from crucible.parent_death_guard import guarded

EC2_JOIN_SECONDS = 900.0
"""How long the machines of one attempt may come apart: each is a request of its own for capacity."""
LEAVE_SECONDS = 10.0
"""How long the further nodes of this machine have to leave once the attempt is over."""


def first_node(spec: JobSpec, pool: str) -> Nodes:
    """The machines and processes of an attempt that the first node, this one, decides on.

    Raises `ConfigError` where the pool has started too few.
    """
    wanted = spec.resources.node_range
    given = wanted.most if pool == "local" else int(os.environ.get(Variable.NODES) or 1)
    used = spec.config.nodes_on(given) if spec.config is not None else given
    if used < wanted.least:
        raise ConfigError(
            f"resources: nodes = {spec.resources.nodes}: the pool {pool} has started {given}"
            + ("" if used == given else f", of which {used} share a step's rows evenly")
        )
    gpus = usable_gpus(spec)
    if spec.resources.gpus and gpus < spec.resources.gpus:
        run_logger().warning("resources: gpus = %d, but nvidia-smi shows %d here", spec.resources.gpus, gpus)
    if spec.config is not None:
        processes = spec.config.processes_on(gpus, used)
    else:
        processes = max(1, gpus if spec.resources.gpus is not None or used > 1 else 1)
    address = os.environ.get(Variable.NODE_ADDRESS) or ("127.0.0.1" if pool == "local" else own_address())
    join = EC2_JOIN_SECONDS if pool in EC2_POOLS else JOIN_SECONDS
    # A machine of its own is given back by a node that leaves; a batch job's and a cluster's are not.
    held = given if pool in ("slurm", "skypilot") else used
    return Nodes(used, processes, address, join_seconds=join, held=held)


def further_node(rank: int) -> Nodes:
    """This machine as a node that joins; how many there are stands where they meet."""
    return Nodes(count=max(2, rank + 1), rank=rank, address=os.environ.get(Variable.NODE_ADDRESS) or own_address())


def usable_gpus(spec: JobSpec) -> int:
    """How many of this machine's GPUs the job may use."""
    here = len(gpus_here())
    return here if spec.resources.gpus is None else min(here, spec.resources.gpus)


def gpus_here() -> list[str]:
    """The GPUs that CUDA lets this process use, as CUDA_VISIBLE_DEVICES names them: Slurm and users hide some."""
    numbers = [str(number) for number in range(len(nvidia_gpus()))]
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if not numbers or visible is None:
        return numbers
    names = (name.strip() for name in visible.split(","))
    return list(takewhile(lambda name: name in numbers or name.startswith(("GPU-", "MIG-")), names))


def torchrun(command: Sequence[str]) -> list[str]:
    """The command, started by torchrun as often as the node's variables say."""
    return [sys.executable, "-P", "-m", "crucible.agent.torchrun", "--", *command]


def threads_of_a_node(pool: str, nodes: Nodes) -> dict[str, str]:
    """How many threads each process uses where several nodes are on one machine: together as many as it has CPUs."""
    if pool != "local" or nodes.count == 1 or os.environ.get("OMP_NUM_THREADS"):
        return {}
    return {"OMP_NUM_THREADS": str(max(1, usable_cpus() // (nodes.count * nodes.processes)))}


@contextmanager
def local_nodes(job: Job, attempt: int, ranks: Iterable[int]) -> Iterator[None]:
    """Further nodes as processes of this machine, which leave when the attempt is over."""
    command = [sys.executable, "-m", "tasks.node", "--store", job.root.uri, "--job", job.job_id]
    running = [
        subprocess.Popen(
            guarded([*command, "--attempt", str(attempt)]),
            env={**os.environ, Variable.NODE_RANK: str(rank), Variable.NODE_ADDRESS: "127.0.0.1"},
            stdin=subprocess.DEVNULL,
            start_new_session=True,
        )
        for rank in ranks
    ]
    try:
        yield
    finally:
        for process in running:
            try:
                process.wait(LEAVE_SECONDS)
            except subprocess.TimeoutExpired:
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()


def run_logger() -> Any:
    """The flow run's logger; in a process that is no flow run's, one of the console."""
    try:
        return get_run_logger()
    except MissingContextError:
        logger = get_logger("crucible")
        logger.setLevel(logging.INFO)
        return logger
