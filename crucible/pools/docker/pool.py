"""The work pool `docker-gpu` as Crucible uses it: one call puts pool and deployment on a Prefect server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crucible.errors import ConfigError
from crucible.pools.common import registration
from crucible.pools.common.offered import offer_only, with_environment

POOL = "docker-gpu"
OFFERED = (
    *("image", "image_pull_policy", "nodes", "gpus", "memory", "shm_size", "tmp_size"),
    *("stop_timeout_seconds", "keep_container"),
)
"""What a run may choose. What reaches beyond the container (folders, users, networks, the worker's variables) it may
not."""


@dataclass(frozen=True)
class PoolOptions:
    """What a user decides about the pool; a run may override what is in `OFFERED` as a job variable."""

    image: str
    gpus: str = "all"
    memory: str | None = None
    runs_at_once: int | None = 1
    """Docker shares a GPU among all who ask: one run at a time unless you set a limit. None: no limit."""
    network: str | None = None
    """Docker network of the containers; None: the host's own when the Prefect server is on this machine."""
    environment: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Other variables of the worker, which stay as they are until they are named again: `volumes`, `user`."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"all|\d{1,4}|device=[\w-]+(,[\w-]+)*", self.gpus):
            raise ConfigError(f"gpus = {self.gpus!r}: write all, a number, or device=0,2")
        if self.memory is not None and not re.fullmatch(r"\d{1,15}[bkmgBKMG]?", self.memory):
            raise ConfigError(f"memory = {self.memory!r}: write a whole number and its unit, like 24g")


def pool_template(options: PoolOptions) -> dict[str, Any]:
    """The base job template: the worker's own, with these options as its defaults, offering what a run may choose.

    Raises `ConfigError` if the worker has no variable of a name in `settings`.
    """
    from crucible.pools.docker.worker import DockerGpuWorker

    template: dict[str, Any] = DockerGpuWorker.get_default_base_job_template()
    variables = template["variables"]["properties"]
    for name in ("image", "gpus", "memory"):
        variables[name]["default"] = getattr(options, name)
    template["variables"]["required"] = []
    network = {"network_mode": options.network} if options.network is not None else {}
    return offer_only(template, OFFERED, with_environment({**options.settings, **network}, options.environment))


def register(options: PoolOptions) -> str:
    """Create or update the pool and `train/docker-gpu` on the server that `PREFECT_API_URL` names; returns its name.

    Raises `ConfigError` if `train/local`, which the deployment is modelled on, is not there.
    """
    return registration.register(
        POOL,
        POOL,
        lambda former: pool_template(replace(options, settings={**former, **options.settings})),
        runs="in a container on this machine",
        description="Containers on this machine's Docker engine, with its GPUs.",
        concurrency_limit=options.runs_at_once,
    )
