"""The pool `docker-gpu` beside the local set-up: what `crucible up --pool docker-gpu` and `crucible down` do to it."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from crucible.errors import ConfigError, ServiceError
from crucible.local import services
from crucible.local.state import PROJECT, Home, State
from crucible.local.up import ensure_all
from crucible.pools.docker.configuration import HOME_LABEL
from crucible.pools.docker.engine import connect, gpu_runtime
from crucible.pools.docker.images import Recipe, build, variant_for
from crucible.pools.docker.pool import PoolOptions, register

Report = Callable[[str, str], None]


def bring_up(
    home: Home, report: Report, *, gpus: str = "all", memory: str | None = None, image: str | None = None
) -> None:
    """Register pool and deployment and start the worker; the image, unless one is named, is built if need be.

    The local set-up must be up. Raises `ConfigError` when GPUs are asked for that the engine cannot hand out, and
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
        _register(PoolOptions(image=image, gpus=gpus, memory=memory), state.api_url)
        ensure_all([services.docker_worker(state.api_url)], home, PROJECT, state, report)


def _register(options: PoolOptions, api_url: str) -> None:
    from prefect.settings import PREFECT_API_URL, temporary_settings

    with temporary_settings({PREFECT_API_URL: api_url}):
        register(options)


def stop_runs(home: Home, report: Report) -> None:
    """Ask every container of this set-up to save and end, and wait for that."""
    try:
        client = connect()
    except ServiceError as error:
        report("Containers", f"not asked to stop: {error}")
        return
    try:
        if running := containers_of(home, client):
            report("Containers", f"stopping {len(running)}")
            with ThreadPoolExecutor(len(running)) as pool:
                list(pool.map(_stop, running))
    finally:
        client.close()


def containers_of(home: Home, client: Any = None) -> list[Any]:
    """The running containers of this set-up. Raises `ServiceError` when no engine answers."""
    found: list[Any] = (client or connect()).containers.list(filters={"label": f"{HOME_LABEL}={home.root}"})
    return found


def _stop(container: Any) -> None:
    from docker.errors import NotFound

    try:
        container.stop(timeout=container.attrs["Config"].get("StopTimeout") or 60)
    except NotFound:
        return
