"""The work pool `slurm` as Crucible uses it: one call puts pool and deployment on a Prefect server."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from crucible.errors import ConfigError
from crucible.pools.common import registration
from crucible.pools.common.offered import offer_only, with_environment

POOL = "slurm"
OFFERED = (
    *("partition", "account", "qos", "nodes", "gpus", "cpus", "memory_mib", "time_limit_minutes", "constraint"),
    *("reservation", "extra_flags", "grace_seconds", "max_restarts"),
)
"""What a run may choose. What runs on the cluster, from which folder, image and login node, it may not."""


@dataclass(frozen=True)
class PoolOptions:
    """What a user decides about the pool; a run may override what is in `OFFERED` as a job variable."""

    environment: Mapping[str, str] = field(default_factory=dict)
    """For all jobs of the pool: `CRUCIBLE_STORE`, `PREFECT_API_URL` as the nodes reach it."""
    name: str = POOL
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Variables of the worker, which stay as they are until they are named again: `partition`, `venv`, `login_node`."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[^/%&<>:\s]+", self.name):
            raise ConfigError(f"name = {self.name!r}: a pool's name has no spaces and none of / % & < > :")


def pool_template(options: PoolOptions) -> dict[str, Any]:
    """The base job template: the worker's own, with these settings as its defaults.

    Raises `ConfigError` if the worker has no variable of a name, or its value is not valid.
    """
    from pydantic import ValidationError

    from crucible.pools.slurm.configuration import SlurmVariables
    from crucible.pools.slurm.worker import SlurmWorker
    from crucible.settings import explain_validation_error

    try:
        SlurmVariables.model_validate({k: v for k, v in options.settings.items() if v != "" and k != "env"})
    except ValidationError as error:
        raise ConfigError(explain_validation_error(error)) from None
    template: dict[str, Any] = SlurmWorker.get_default_base_job_template()
    return offer_only(template, OFFERED, with_environment(options.settings, options.environment))


def register(options: PoolOptions) -> str:
    """Create or update the pool and its deployment on the server that `PREFECT_API_URL` names; returns the pool's name.

    Raises:
        ConfigError: `train/local`, which the deployment is modelled on, is not there, or a setting is not valid.
    """
    return registration.register(
        options.name,
        "slurm",
        lambda former: pool_template(replace(options, settings={**former, **options.settings})),
        runs="as a batch job on a Slurm cluster",
        description="A Slurm cluster: every run is a batch job of your account there.",
    )
