"""The work pool `skypilot` as Crucible uses it: one call puts pool and deployments on a Prefect server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crucible.pools.common import pool_options

POOL = "skypilot"
OFFERED = (
    *("infra", "instance_type", "accelerators", "nodes", "use_spot", "cpus", "memory", "disk_gib", "autostop_minutes"),
    *("grace_seconds", "max_restarts"),
)
"""What a run may choose. What runs on the machine, from which folder and image, it may not."""


@dataclass(frozen=True, kw_only=True)
class PoolOptions(pool_options.PoolOptions):
    """What a user decides about the pool; its settings are `infra`, `setup`, `workdir` and others."""

    name: str = POOL


def pool_template(options: PoolOptions) -> dict[str, Any]:
    """The base job template. Raises `ConfigError` for a setting that is unknown or not valid."""
    from crucible.pools.skypilot.worker import SkyWorker

    return pool_options.template_of(SkyWorker, OFFERED, options)


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
        runs="on a machine that SkyPilot brings up",
        description="GCP, Azure, Lambda, RunPod and others: every run on a machine of its own, through SkyPilot.",
    )
