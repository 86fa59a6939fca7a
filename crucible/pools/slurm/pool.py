"""The work pool `slurm` as Crucible uses it: one call puts pool and deployments on a Prefect server."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from crucible.pools.common import pool_options

POOL = "slurm"
OFFERED = (
    *("partition", "account", "qos", "nodes", "gpus", "cpus", "memory_mib", "time_limit_minutes", "constraint"),
    *("reservation", "extra_flags", "grace_seconds", "max_restarts"),
)
"""What a run may choose. What runs on the cluster, from which folder, image and login node, it may not."""


@dataclass(frozen=True, kw_only=True)
class PoolOptions(pool_options.PoolOptions):
    """What a user decides about the pool; its settings are `partition`, `venv`, `login_node` and others."""

    name: str = POOL


def pool_template(options: PoolOptions) -> dict[str, Any]:
    """The base job template. Raises `ConfigError` for a setting that is unknown or not valid."""
    from crucible.pools.slurm.worker import SlurmWorker

    return pool_options.template_of(SlurmWorker, OFFERED, options)


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
        runs="as a batch job on a Slurm cluster",
        description="A Slurm cluster: every run is a batch job of your account there.",
    )
