"""A work pool of Prefect's own type `kubernetes`, with a template that has what a training needs: GPUs, spot nodes, a
grace period, and Crucible's entrypoint as the pod's first process.

The worker is prefect-kubernetes's, unchanged. The template is `infrastructure/kubernetes/base-job-template.json`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from crucible.errors import ConfigError
from crucible.pools.common import registration
from crucible.pools.common.offered import offer_only, with_environment

POOL = "kubernetes"
TEMPLATE = Path("infrastructure", "kubernetes", "base-job-template.json")
OFFERED = ("gpus", "node_selector", "tolerations", "cpu_request", "cpu_limit", "memory_request", "memory_limit")
"""What a run may choose. What runs in the pod, from which image and account, it may not."""


@dataclass(frozen=True)
class PoolOptions:
    """What a user decides about the pool; a run may override what is in `OFFERED` as a job variable."""

    project: Path
    environment: Mapping[str, str] = field(default_factory=dict)
    """For all pods: `PREFECT_API_URL` as the cluster reaches it, `CRUCIBLE_STORE`."""
    name: str = POOL
    settings: Mapping[str, Any] = field(default_factory=dict)


def pool_template(options: PoolOptions, former: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """The base job template with these settings as its defaults. Raises `ConfigError` for a wrong one."""
    template: dict[str, Any] = json.loads((options.project / TEMPLATE).read_text(encoding="utf-8"))
    settings = {**(former or {}), **options.settings}
    if settings.get("backoff_limit", 0) != 0:
        raise ConfigError("backoff_limit: must be 0; Crucible owns retries, and Kubernetes would be a second owner")
    grace = settings.get("grace_seconds", template["variables"]["properties"]["grace_seconds"]["default"])
    if not isinstance(grace, int) or grace < 1:
        raise ConfigError(f"grace_seconds = {grace!r}: write a whole number of seconds, 1 at least")
    environment = {"CRUCIBLE_STOP_GRACE_SECONDS": str(grace), **options.environment}
    return offer_only(template, OFFERED, with_environment(settings, environment))


def register(options: PoolOptions) -> str:
    """Create or update the pool and its deployments on the server that `PREFECT_API_URL` names; returns its name.

    Raises:
        ConfigError: `train/local`, which the deployments are modelled on, is not there, or a setting is not valid.
    """
    return registration.register(
        options.name,
        POOL,
        lambda former: pool_template(options, former),
        runs="in a pod on Kubernetes",
        description="A Kubernetes cluster: every run in a pod, through prefect-kubernetes.",
    )
