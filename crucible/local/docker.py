"""The pool `docker-gpu` beside the local set-up: `crucible up --pool docker-gpu` adds it, `crucible down` stops it."""

from __future__ import annotations

import sys
from typing import Any

from crucible.errors import ConfigError
from crucible.local import access
from crucible.local.services import DOCKER_WORKER, WORKER_NAME, Service, worker_reports
from crucible.local.state import PROJECT, Home, State
from crucible.local.up import Report, ensure_all
from crucible.pools.docker.containers import stop_containers
from crucible.pools.docker.engine import connect, gpu_runtime
from crucible.pools.docker.images import Recipe, build, variant_for
from crucible.pools.docker.pool import POOL, PoolOptions, register


def worker(home: Home, api_url: str) -> Service:
    """The worker of the pool `docker-gpu`, whose containers run on this machine's engine."""
    command = (
        *(sys.executable, "-m", "prefect", "worker", "start"),
        *("--pool", POOL, "--type", POOL, "--name", WORKER_NAME),
    )
    return Service(DOCKER_WORKER, "Docker worker", command, lambda record: worker_reports(home, api_url, record, POOL))


def bring_up(
    home: Home, report: Report, *, gpus: str = "all", memory: str | None = None, image: str | None = None
) -> None:
    """Register pool and deployment and start the worker; without `image`, build this tree's image first.

    The local set-up must be up. Raises `ConfigError` when GPUs are requested that the engine cannot hand out, and
    `ServiceError` when no engine answers.
    """
    client = connect()
    info: dict[str, Any] = client.info()
    client.close()
    variant = variant_for(gpus)
    if variant == "gpu" and not gpu_runtime(info):
        raise ConfigError(
            f"gpus: {gpus!r}, but the Docker engine {info['ServerVersion']} has no NVIDIA runtime: install the driver "
            "and the NVIDIA Container Toolkit (nvidia-ctk runtime configure, then restart docker), or train on the CPU "
            "with: crucible up --pool docker-gpu --gpus 0"
        )
    image = image or build(Recipe(variant), lambda line: report("Image", line[:100]))
    report("Image", image)
    with home.locked():
        state = State.load(home)
        assert state.api_url is not None
        with access.prefect_settings(home):
            register(PoolOptions(image=image, gpus=gpus, memory=memory))
        ensure_all([worker(home, state.api_url)], home, PROJECT, state, report)


def stop_runs(home: Home, report: Report) -> None:
    """Stop the containers of this set-up: each saves its work first."""
    stop_containers(home.root, lambda status: report("Containers", status))
