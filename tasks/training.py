"""One attempt at training, inside the flow run that a pool started for it."""

from __future__ import annotations

import os
import sys
import time
from dataclasses import replace
from pathlib import Path

from prefect.exceptions import TerminationSignal

from crucible.agent.attempt import run_attempt
from crucible.agent.health import machine_problem, torch_cuda_version
from crucible.agent.machine_metrics import machine_sampler
from crucible.agent.nodes import Nodes
from crucible.agent.notices import Notice
from crucible.agent.observer import Observer
from crucible.agent.plan import AttemptPlan, Scratch, WorkloadCommand
from crucible.agent.saving import SavePolicy
from crucible.agent.sources import sources_of_this_machine, why_signalled
from crucible.billing.machine_price import EC2_POOLS
from crucible.checkpoints.initial import place_weights
from crucible.config import TrainConfig
from crucible.contract import finished_folders
from crucible.datasets.fetch import fetch_dataset
from crucible.errors import ConfigError
from crucible.home import crucible_home
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, JobSpec, Launch, Outcome
from crucible.store import Store
from tasks.machine import Machine
from tasks.nodes import first_node, local_nodes, run_logger, threads_of_a_node, torchrun, usable_gpus
from tasks.observing import AttemptObserver
from tasks.scripts import prepare_script
from tasks.stopping import being_cancelled

WORKER_GRACE_SECONDS = 25.0
"""Prefect's process worker waits 30 s between SIGTERM and SIGKILL."""


def train_attempt(job: Job, number: int, observer: Observer | None = None) -> Outcome:
    """Run attempt `number` of `job` on this machine to its outcome.

    `observer`: who is shown what happens; None: the flow run. Must be called in the main thread: Prefect raises a stop
    request there as an exception.
    """
    spec = job.read_spec()
    launch = job.attempt(number).read_launch()
    if launch is None:
        raise ConfigError(f"attempt: {number} of {job.job_id} was never decided on; start the job with train-nanogpt")
    nodes = first_node(spec, launch.pool)
    machine = Machine.here()
    plan = replace(
        attempt_plan(job, spec, launch, nodes),
        claim=lambda: machine.claim(number, launch, nodes),
        current_price=machine.current_price if launch.pool in EC2_POOLS else None,
        sample_machine=machine_sampler("-1" if _only_cpus(spec) else None),
        interrupts=(TerminationSignal, KeyboardInterrupt),
        on_interrupt=_stop_notice,
        explain=why_signalled,
    )
    others = range(1, nodes.count) if launch.pool == "local" else range(0)
    with local_nodes(job, number, others):
        return run_attempt(job.attempt(number), plan, observer or AttemptObserver(job, number))


def attempt_plan(job: Job, spec: JobSpec, launch: Launch, nodes: Nodes) -> AttemptPlan:
    """How to run a node of the attempt here, as far as it is the same for all of them."""
    return AttemptPlan(
        prepare=lambda scratch: prepare(job, spec, scratch, nodes=nodes),
        scratch=crucible_home() / "scratch",
        launch=launch,
        save=save_policy(spec, launch),
        sources=sources_of_this_machine(),
        machine_problem=lambda: machine_problem(uses_gpus=_uses_gpus(spec, launch.pool)),
        total_steps=spec.total_steps,
        cwd=Path.cwd(),
        environment={**os.environ, **threads_of_a_node(launch.pool, nodes)},
        heartbeat_seconds=heartbeat_seconds(job.root),
        nodes=nodes,
    )


def _uses_gpus(spec: JobSpec, pool: str) -> bool:
    """Whether the job surely needs this machine's GPUs: one that does not must not wait for their health."""
    if spec.config is not None:
        return not _only_cpus(spec) and torch_cuda_version() is not None
    return not _only_cpus(spec) and (pool != "local" or bool(spec.resources.gpus))


def _only_cpus(spec: JobSpec) -> bool:
    """Whether the job leaves this machine's GPUs alone, whatever state they are in."""
    return spec.resources.gpus == 0 or (spec.config is not None and spec.config.device in ("cpu", "mps"))


def prepare(
    job: Job, spec: JobSpec, scratch: Scratch, gpus: int | None = None, nodes: Nodes | None = None
) -> WorkloadCommand:
    """Bring the dataset here (once per machine), write the config, and return what to start.

    `gpus`: how many the training may use; None: all that this machine has. `nodes`: the machines that train together;
    None: this one.
    """
    nodes = nodes or Nodes()
    if spec.script is not None:
        return prepare_script(job, spec, spec.script, scratch, nodes)
    if spec.config is None:
        raise ConfigError(f"job: {job.job_id} has neither a configuration nor a script; start a new job")
    dataset = fetch_dataset(job.root, spec.dataset, crucible_home() / "cache" / "datasets")
    config = scratch.root / "config.json"
    config.write_text(spec.config.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "crucible.training", "--config", str(config), "--data", str(dataset)]
    if spec.config.init_from and not finished_folders(scratch.resume):  # a checkpoint of the job's own always wins
        weights = place_weights(job.root, spec.config.init_from, scratch.root, crucible_home() / "cache" / "data")
        command += ["--weights", str(weights)]
    shown = spec.resources.visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES"))
    environment = {**spec.resources.environment, **shown}
    if gpus is None:
        gpus = usable_gpus(spec)
    processes = spec.config.processes_on(gpus, nodes.count)
    if processes < gpus and nodes.rank == 0:  # which alone knows how many there are
        run_logger().warning(
            "%d of %d GPUs are used%s: gradient_accumulation_steps = %d cannot be divided among more. %s would use "
            "all, with another batch size",
            processes,
            gpus,
            f" on each of {nodes.count} nodes" if nodes.count > 1 else "",
            spec.config.gradient_accumulation_steps,
            spec.config.multiples_near(gpus * nodes.count),
        )
    if nodes.count > 1:
        return WorkloadCommand(torchrun(command), environment=environment)
    several = ["--processes", str(processes)] if processes > 1 else []
    return WorkloadCommand([*command, *several], environment=environment)


def save_policy(spec: JobSpec, launch: Launch) -> SavePolicy:
    """How often to save (as the config fixes it, or by the offer's interruptions), and how many saves to keep."""
    fixed = spec.config.checkpoint_interval_seconds if spec.config else None
    kept = (spec.config or spec.script or TrainConfig()).keep_checkpoints
    return SavePolicy(mtbf_seconds=launch.mtbf_seconds, fixed_seconds=fixed, keep_last=kept)


def heartbeat_seconds(store: Store) -> float:
    """Between two signs of life: often where a write is free, rarer where every request costs and takes its time."""
    return 2.0 if store.uri.startswith("file:") else 5.0


def _stop_notice() -> Notice:
    """What a SIGTERM to this flow run means: a person pressed Cancel, or the worker or machine is going."""
    deadline = time.time() + WORKER_GRACE_SECONDS
    if being_cancelled():
        return Notice("person", "cancelled in Prefect", deadline, end_reason=EndReason.CANCELLED)
    return Notice("signal", "the flow run was asked to stop (SIGTERM)", deadline)
