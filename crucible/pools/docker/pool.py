"""The work pool `docker-gpu` as Crucible uses it: one call puts pool and deployment on a Prefect server."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from crucible.errors import ConfigError
from crucible.pools.common import registration

POOL = "docker-gpu"


@dataclass(frozen=True)
class PoolOptions:
    """What a user decides about the pool; every value can be overridden per run as a job variable."""

    image: str
    gpus: str = "all"
    memory: str | None = None
    runs_at_once: int | None = 1
    """Docker shares a GPU among all who ask: one run at a time unless you set a limit. None: no limit."""
    network: str | None = None
    """Docker network of the containers; None: the host's own when the Prefect server is on this machine."""
    environment: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not re.fullmatch(r"all|\d{1,4}|device=[\w-]+(,[\w-]+)*", self.gpus):
            raise ConfigError(f"gpus = {self.gpus!r}: write all, a number, or device=0,2")
        if self.memory is not None and not re.fullmatch(r"\d{1,15}[bkmgBKMG]?", self.memory):
            raise ConfigError(f"memory = {self.memory!r}: write a whole number and its unit, like 24g")


def pool_template(options: PoolOptions) -> dict[str, Any]:
    """The base job template: the worker's own, with these options as its defaults."""
    from crucible.pools.docker.worker import DockerGpuWorker

    template: dict[str, Any] = DockerGpuWorker.get_default_base_job_template()
    variables = template["variables"]["properties"]
    defaults = {
        "image": options.image,
        "gpus": options.gpus,
        "memory": options.memory,
        "network_mode": options.network,
        "env": options.environment,
    }
    for name, value in defaults.items():
        variables[name]["default"] = value
    template["variables"]["required"] = []
    return template


def register(options: PoolOptions) -> str:
    """Create or update the pool and `train/docker-gpu` on the server that `PREFECT_API_URL` names; returns its name.

    Raises `ConfigError` if `train/local`, which the deployment is modelled on, is not there.
    """
    return registration.register(
        POOL,
        POOL,
        runs="in a container on this machine",
        base_job_template=pool_template(options),
        description="Containers on this machine's Docker engine, with its GPUs.",
        concurrency_limit=options.runs_at_once,
    )
