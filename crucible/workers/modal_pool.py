"""The work pool `modal` as Crucible uses it: one call puts pool and deployment on a Prefect server."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from crucible.errors import ConfigError

POOL = "modal"
FLOW = "train"
MODEL = "local"
"""`train/local`, which `crucible up` deploys, is what `train/modal` takes its parameters from."""


@dataclass(frozen=True)
class PoolOptions:
    """What a user decides about the pool; every value can be overridden per run as a job variable."""

    image: str | None = None
    """Image with the project in its working directory; None: built from the Dockerfile in the worker's checkout."""
    gpu: tuple[str, ...] = ("L4",)
    environment: dict[str, str] = field(default_factory=dict)
    """For all sandboxes of the pool: `PREFECT_API_URL` as Modal reaches it, `CRUCIBLE_STORE`."""
    secrets: tuple[str, ...] = ()
    """Names of Modal Secrets, with the credentials of the store."""
    name: str = POOL


def pool_template(options: PoolOptions) -> dict[str, Any]:
    """The base job template: the worker's own, with these options as its defaults, and jobs kept apart by their tag."""
    from crucible.workers.modal import ModalWorker

    template: dict[str, Any] = ModalWorker.get_default_base_job_template()
    variables = template["variables"]["properties"]
    defaults = {
        "image": options.image,
        "gpu": list(options.gpu),
        "env": options.environment,
        "secrets": list(options.secrets),
        "exclusive_tag": "job",
    }
    for name, value in defaults.items():
        variables[name]["default"] = value
    return template


def register(options: PoolOptions) -> str:
    """Create or update the pool and `train/modal` on the server that `PREFECT_API_URL` names; returns the pool's name.

    Raises:
        ConfigError: `train/local`, which it is modelled on, is not deployed there.
    """
    from prefect.client.orchestration import get_client
    from prefect.client.schemas.actions import WorkPoolCreate, WorkPoolUpdate
    from prefect.exceptions import ObjectNotFound

    template = pool_template(options)
    description = "GPUs in seconds: every run in a sandbox on Modal."
    with get_client(sync_client=True) as client:
        try:
            model = client.read_deployment_by_name(f"{FLOW}/{MODEL}")
        except ObjectNotFound as error:
            raise ConfigError(
                f"{FLOW}/{MODEL} is not deployed on this Prefect server: run `crucible up` first"
            ) from error
        try:
            client.read_work_pool(options.name)
            client.update_work_pool(options.name, WorkPoolUpdate(base_job_template=template, description=description))
        except ObjectNotFound:
            client.create_work_pool(
                WorkPoolCreate(name=options.name, type="modal", base_job_template=template, description=description)
            )
        client.create_deployment(  # an upsert by flow and name
            flow_id=model.flow_id,
            name=options.name,
            description="One attempt at a job on Modal; started by train-nanogpt.",
            work_pool_name=options.name,
            entrypoint=model.entrypoint,
            # The code is in the image's working directory; without this step Prefect would first copy all of it.
            pull_steps=[{"prefect.deployments.steps.set_working_directory": {"directory": "."}}],
            parameter_openapi_schema=model.parameter_openapi_schema,
            enforce_parameter_schema=True,
            tags=model.tags,
        )
    return options.name
