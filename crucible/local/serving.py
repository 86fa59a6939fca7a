"""Serve an evaluated model: its export in a folder, and the run of `train-script` that serves it.

A server is a job like any other: a killed one starts again, it stops at its caps, and it has a job's log and costs.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible.checkpoints.manifest import MODELS
from crucible.contract import step_name
from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.local.run_script import ScriptRun, job_name, plan_run
from crucible.reports.evaluation import read_evaluation
from crucible.run_config import RunConfig

POOL = "local"
"""The only pool whose machine a client can reach: the others take no connections from outside."""
NEEDED = ("config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json")


@dataclass(frozen=True)
class ServeRequest:
    """What is to be served, where, and for how long."""

    step: int | None = None
    """Of the evaluated model; None: the newest one."""
    name: str = ""
    """The new job's; empty: the model's job and the time."""
    host: str = "127.0.0.1"
    port: int = 8000
    idle_seconds: float = 1800.0
    max_cost_usd: float | None = None
    max_hours: float | None = None
    project: str = "default"
    store: str = "default"

    def config(self, model: str) -> RunConfig:
        """The settings of the run. Raises `ConfigError`."""
        command = [sys.executable, "-m", "crucible.serving", model, "--host", self.host, "--port", str(self.port)]
        given: dict[str, Any] = {
            "command": [*command, "--idle-seconds", f"{self.idle_seconds:g}"],
            "name": f"serve-{model}"[:40],
            "pool": POOL,
            "dependencies": "none",
            "max_cost_usd": self.max_cost_usd,
            "max_hours": self.max_hours,
            "project": self.project,
            "store": self.store,
        }
        return RunConfig.parse({key: value for key, value in given.items() if value is not None})


def fetch_model(job: Job, step: int | None, folder: Path) -> Path:
    """Put what a server needs of an evaluated model into `folder/<job>`, and return that.

    Raises `ConfigError` where the job has no such model.
    """
    if step is None:
        evaluation = read_evaluation(job)
        if evaluation is None:
            raise ConfigError(
                f"job: {job.job_id} has no evaluated model; make one: "
                f"prefect deployment run evaluate -p job={job.job_id}"
            )
        step = int(evaluation["step"])
    prefix = f"{MODELS}/{step_name(step)}"
    there = {info.key.removeprefix(f"{prefix}/") for info in job.store.list(prefix)}
    if missing := [name for name in NEEDED if name not in there]:
        raise ConfigError(
            f"step: {job.job_id} has no model of step {step} for transformers ({missing[0]} is missing); make one: "
            f"prefect deployment run evaluate -p job={job.job_id} -p step={step}"
        )
    target = folder / job.job_id
    for name in sorted(there & {*NEEDED, "README.md", "generation_config.json"}):
        job.store.download(f"{prefix}/{name}", target / name)
    return target


def plan_serving(job: Job, request: ServeRequest, folder: Path) -> ScriptRun:
    """Fetch the model to `folder` and pack it. Raises `ConfigError`; nothing has been started by then."""
    fetch_model(job, request.step, folder)
    config = request.config(job.job_id)
    return plan_run(config, folder, request.name or job_name(config, folder))
