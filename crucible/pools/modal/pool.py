"""The work pool `modal` as Crucible uses it: one call puts pool and deployment on a Prefect server."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from crucible.errors import ConfigError
from crucible.pools.common import registration

POOL = "modal"


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

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/%&<>\s]+", self.name):
            raise ConfigError(f"name = {self.name!r}: a pool's name has no spaces and none of / % & < >")
        for gpu in self.gpu:
            if not re.fullmatch(r"[A-Za-z0-9-]+!?(:[1-8])?", gpu):
                raise ConfigError(
                    f"gpu = {gpu!r}: write a type of GPU, and how many (1 to 8) after a colon: L4, H100:8"
                )


def pool_template(options: PoolOptions) -> dict[str, Any]:
    """The base job template: the worker's own, with these options as its defaults, and jobs kept apart by their tag."""
    from crucible.pools.modal.worker import ModalWorker

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
    """Create or update the pool and its deployment on the server that `PREFECT_API_URL` names; returns the pool's name.

    Raises:
        ConfigError: `train/local`, which the deployment is modelled on, is not there.
    """
    return registration.register(
        options.name,
        "modal",
        runs="on Modal",
        base_job_template=pool_template(options),
        description="GPUs in seconds: every run in a sandbox on Modal.",
    )
