"""The work pool `modal` as Crucible uses it: one call puts pool and deployment on a Prefect server."""

from __future__ import annotations

import re
from dataclasses import dataclass, replace
from typing import Any

from crucible.errors import ConfigError
from crucible.pools.common import pool_options

POOL = "modal"
OFFERED = (
    *("image", "gpu", "cpu", "memory_mib", "timeout_seconds", "capacity_timeout_seconds", "region", "cloud"),
    *("tags", "stream_output", "grace_seconds", "max_restarts", "usd_per_hour"),
)
"""What a run may choose. Tokens, secrets, volumes and files of the worker's machine it may not."""


@dataclass(frozen=True, kw_only=True)
class PoolOptions(pool_options.PoolOptions):
    """What a user decides about the pool; its settings are `dockerfile`, `volumes` and others."""

    name: str = POOL
    image: str | None = None
    """Image with the project in its working directory; None: built from the Dockerfile in the worker's checkout."""
    gpu: tuple[str, ...] = ("L4",)
    secrets: tuple[str, ...] = ()
    """Names of Modal Secrets, with the credentials of the store."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for gpu in self.gpu:
            if not re.fullmatch(r"[A-Za-z0-9-]+!?(:[1-8])?", gpu):
                raise ConfigError(
                    f"gpu = {gpu!r}: write a type of GPU, and how many (1 to 8) after a colon: L4, H100:8"
                )


def pool_template(options: PoolOptions) -> dict[str, Any]:
    """The base job template, which keeps jobs apart by their tag.

    Raises `ConfigError` for a setting that is unknown or not valid.
    """
    from crucible.pools.modal.worker import ModalWorker

    secrets = {"secrets": list(options.secrets)} if options.secrets else {}
    given = replace(options, settings={**options.settings, **secrets})
    defaults = {"image": options.image, "gpu": list(options.gpu), "exclusive_tag": "job"}
    return pool_options.template_of(ModalWorker, OFFERED, given, **defaults)


def register(options: PoolOptions) -> str:
    """Create or update the pool and its deployments on the server that `PREFECT_API_URL` names; returns the pool's
    name.

    Raises:
        ConfigError: `train/local`, which the deployments are modelled on, is not there, or a setting is not valid.
    """
    return pool_options.register(
        options,
        POOL,
        pool_template,
        runs="on Modal",
        description="GPUs in seconds: every run in a sandbox on Modal.",
    )
