"""The work pool `modal` as Crucible uses it: one call puts pool and deployment on a Prefect server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crucible.errors import ConfigError
from crucible.pools.common import registration
from crucible.pools.common.offered import offer_only, with_environment

POOL = "modal"
OFFERED = (
    *("image", "gpu", "cpu", "memory_mib", "timeout_seconds", "capacity_timeout_seconds", "region", "cloud"),
    *("tags", "stream_output", "grace_seconds", "max_restarts", "usd_per_hour"),
)
"""What a run may choose. Tokens, secrets, volumes and files of the worker's machine it may not."""


@dataclass(frozen=True)
class PoolOptions:
    """What a user decides about the pool; a run may override what is in `OFFERED` as a job variable."""

    image: str | None = None
    """Image with the project in its working directory; None: built from the Dockerfile in the worker's checkout."""
    gpu: tuple[str, ...] = ("L4",)
    environment: Mapping[str, str] = field(default_factory=dict)
    """For all sandboxes of the pool: `PREFECT_API_URL` as Modal reaches it, `CRUCIBLE_STORE`."""
    secrets: tuple[str, ...] = ()
    """Names of Modal Secrets, with the credentials of the store."""
    name: str = POOL
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Other variables of the worker, which stay as they are until they are named again: `dockerfile`, `volumes`."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/%&<>\s]+", self.name):
            raise ConfigError(f"name = {self.name!r}: a pool's name has no spaces and none of / % & < >")
        for gpu in self.gpu:
            if not re.fullmatch(r"[A-Za-z0-9-]+!?(:[1-8])?", gpu):
                raise ConfigError(
                    f"gpu = {gpu!r}: write a type of GPU, and how many (1 to 8) after a colon: L4, H100:8"
                )


def pool_template(options: PoolOptions) -> dict[str, Any]:
    """The base job template: the worker's own, with these options as its defaults, and jobs kept apart by their tag.

    Raises `ConfigError` if the worker has no variable of a name in `settings`.
    """
    from crucible.pools.modal.worker import ModalWorker

    template: dict[str, Any] = ModalWorker.get_default_base_job_template()
    variables = template["variables"]["properties"]
    for name, value in {"image": options.image, "gpu": list(options.gpu), "exclusive_tag": "job"}.items():
        variables[name]["default"] = value
    secrets = {"secrets": list(options.secrets)} if options.secrets else {}
    return offer_only(template, OFFERED, with_environment({**options.settings, **secrets}, options.environment))


def register(options: PoolOptions) -> str:
    """Create or update the pool and its deployment on the server that `PREFECT_API_URL` names; returns the pool's name.

    Raises:
        ConfigError: `train/local`, which the deployment is modelled on, is not there.
    """
    return registration.register(
        options.name,
        "modal",
        lambda former: pool_template(replace(options, settings={**former, **options.settings})),
        runs="on Modal",
        description="GPUs in seconds: every run in a sandbox on Modal.",
    )
