"""One attempt at training, inside the flow run that a pool started for it."""

from __future__ import annotations

import json
import math
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from prefect.exceptions import TerminationSignal
from prefect.runtime import flow_run

from crucible.agent.attempt import run_attempt
from crucible.agent.notices import Notice, sources_of_this_machine
from crucible.agent.notices_ec2 import Ec2MetadataNotices
from crucible.agent.plan import AttemptPlan, Scratch
from crucible.agent.saving import SavePolicy
from crucible.catalog.this_machine import nvidia_gpus
from crucible.datasets.fetch import fetch_dataset
from crucible.errors import ConfigError
from crucible.home import crucible_home
from crucible.jobs.job import Job
from crucible.jobs.records import Claim, EndReason, JobSpec, Launch, Outcome
from crucible.pools.aws.prices import spot_price
from crucible.store import Store
from tasks.observing import AttemptObserver
from tasks.stopping import being_cancelled

WORKER_GRACE_SECONDS = 25.0
"""Prefect's process worker waits 30 s between SIGTERM and SIGKILL."""


def train_attempt(job: Job, number: int) -> Outcome:
    """Run attempt `number` of `job` on this machine to its outcome.

    Must be called in the main thread: Prefect raises a stop request there as an exception.
    """
    spec = job.read_spec()
    launch = job.attempt(number).read_launch()
    if launch is None:
        raise ConfigError(f"attempt: {number} of {job.job_id} was never decided on; start the job with train-nanogpt")
    plan = AttemptPlan(
        prepare=lambda scratch: prepare(job, spec, scratch),
        scratch=crucible_home() / "scratch",
        launch=launch,
        save=save_policy(spec, launch),
        sources=sources_of_this_machine(),
        claim=lambda: _claim(number, launch),
        total_steps=spec.config.get("max_iters"),
        cwd=Path.cwd(),
        interrupts=(TerminationSignal, KeyboardInterrupt),
        on_interrupt=_stop_notice,
        beat_seconds=heartbeat_seconds(job.root),
    )
    return run_attempt(job.attempt(number), plan, AttemptObserver(job, number))


def prepare(job: Job, spec: JobSpec, scratch: Scratch, gpus: int | None = None) -> Sequence[str]:
    """Bring the dataset here (once per machine), write the config, and return the trainer's command line.

    `gpus`: how many the training may use; None: all that this machine has.
    """
    if spec.command:
        return spec.command
    dataset = fetch_dataset(job.root, spec.dataset, crucible_home() / "cache" / "datasets")
    config = scratch.root / "config.json"
    config.write_text(json.dumps(spec.config))
    command = [sys.executable, "-m", "crucible.training", "--config", str(config), "--data", str(dataset)]
    # As many as share the micro-batches evenly; the estimate counts on the same number.
    gpus = len(nvidia_gpus()) if gpus is None else gpus
    processes = math.gcd(gpus, int(spec.config.get("gradient_accumulation_steps", 1)))
    return [*command, "--processes", str(processes)] if processes > 1 else command


def save_policy(spec: JobSpec, launch: Launch) -> SavePolicy:
    """How often to save: as the config fixes it, or by the offer's interruptions."""
    fixed = spec.config.get("checkpoint_interval_seconds")
    return SavePolicy(mtbf_seconds=launch.mtbf_seconds, fixed_seconds=fixed)


def heartbeat_seconds(store: Store) -> float:
    """Between two signs of life: often where a write is free, rarer where every request costs and takes its time."""
    return 2.0 if store.uri.startswith("file:") else 5.0


def _claim(number: int, launch: Launch) -> Claim:
    identity = Ec2MetadataNotices().instance_identity() or {}
    if identity.get("lifecycle") == "spot" and (price := spot_price(identity["instance_type"], identity["zone"])):
        identity["spot_usd_per_hour"] = price
    return Claim(
        number=number,
        flow_run_id=str(flow_run.id or ""),
        instance=identity.get("instance_type") or launch.instance,
        environment={"python": sys.version.split()[0], "cpus": os.cpu_count(), **_image(), **identity},
    )


def _image() -> dict[str, str]:
    """The container image, by its content digest; nothing outside containers."""
    image = os.environ.get("CRUCIBLE_IMAGE")
    return {"image": image} if image else {}


def _stop_notice() -> Notice:
    """What a SIGTERM to this flow run means: a person pressed Cancel, or the worker or machine is going."""
    deadline = time.time() + WORKER_GRACE_SECONDS
    if being_cancelled():
        return Notice("person", "cancelled in Prefect", deadline, end_reason=EndReason.CANCELLED)
    return Notice("signal", "the flow run was asked to stop (SIGTERM)", deadline)
