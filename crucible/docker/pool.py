"""The work pool `docker-gpu` as Crucible uses it: one call puts pool and deployment on a Prefect server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from crucible.errors import ConfigError

POOL = "docker-gpu"
FLOW = "train"
MODEL = "local"
"""`train/local`, which `crucible up` deploys, is what `train/docker-gpu` takes its parameters from."""
CODE_FOLDER = "/opt/crucible"
PULL_STEPS = [{"prefect.deployments.steps.set_working_directory": {"directory": CODE_FOLDER}}]


@dataclass(frozen=True)
class PoolOptions:
    """What a user decides about the pool; every value can be overridden per run as a job variable."""

    image: str
    gpus: str = "all"
    memory: str | None = None
    runs_at_once: int | None = 1
    """Docker shares a GPU among all who ask: one run at a time unless told otherwise. None: no limit."""
    network: str | None = None
    """Docker network of the containers; None: the host's own when the Prefect server is on this machine."""
    environment: dict[str, str] = field(default_factory=dict)


def pool_template(options: PoolOptions) -> dict[str, Any]:
    """The base job template: the worker's own, with these options as its defaults."""
    from crucible.docker.worker import DockerGpuWorker

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

    Raises `ConfigError` if `train/local`, which it is modelled on, is not deployed there.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    values: dict[str, Any] = {
        "base_job_template": pool_template(options),
        "description": "Containers on this machine's Docker engine, with its GPUs.",
        "concurrency_limit": options.runs_at_once,
    }
    with get_client(sync_client=True) as client:
        try:
            model = client.read_deployment_by_name(f"{FLOW}/{MODEL}")
        except ObjectNotFound as error:
            raise ConfigError(
                f"{FLOW}/{MODEL} is not deployed on this Prefect server: run `crucible up` first"
            ) from error
        try:
            client.read_work_pool(POOL)
            client.update_work_pool(POOL, WorkPoolUpdate(**values))
        except ObjectNotFound:
            client.create_work_pool(WorkPoolCreate(name=POOL, type=POOL, **values))
        client.create_deployment(  # an upsert by flow and name
            flow_id=model.flow_id,
            name=POOL,
            description="One attempt at a job in a container on this machine; started by train-nanogpt.",
            work_pool_name=POOL,
            entrypoint=model.entrypoint,
            pull_steps=PULL_STEPS,
            parameter_openapi_schema=model.parameter_openapi_schema,
            enforce_parameter_schema=True,
            tags=model.tags,
        )
    return POOL
