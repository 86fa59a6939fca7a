"""The names of SkyPilot's machines in the catalog: `CLOUD/REGION/INSTANCE[+GPU:N][/spot]`.

    gcp/us-central1/g2-standard-4+L4:1/spot     azure/eastus/Standard_NC24ads_A100_v4     lambda/us-west-1/gpu_1x_a100

The name says all that SkyPilot has to be told, so that it chooses nothing itself.
"""

from __future__ import annotations

import re
from typing import Any

from crucible.errors import ConfigError

SPOT = "spot"
OWN_MACHINES = ("kubernetes", "slurm", "ssh")
"""Clouds of SkyPilot's that are not rented, and perhaps beside the worker."""
_NAME = re.compile(
    r"(?P<cloud>[a-z]+)/(?P<region>[\w.-]+)/(?P<instance>[\w.-]+)(\+(?P<gpu>[\w.-]+:\d+))?(?P<spot>/spot)?"
)


def name_of(cloud: str, region: str, instance: str, *, accelerators: str = "", spot: bool = False) -> str:
    """The offer's name in the catalog.

    >>> name_of("gcp", "us-central1", "g2-standard-4", accelerators="L4:1", spot=True)
    'gcp/us-central1/g2-standard-4+L4:1/spot'
    """
    return f"{cloud}/{region}/{instance}{f'+{accelerators}' if accelerators else ''}{f'/{SPOT}' if spot else ''}"


def job_variables(name: str) -> dict[str, Any]:
    """What the pool has to be told for that offer. Raises `ConfigError` for another kind of name.

    >>> job_variables("lambda/us-west-1/gpu_1x_a100")["infra"]
    'lambda/us-west-1'
    """
    found = _NAME.fullmatch(name)
    if found is None:
        raise ConfigError(
            f"resources.instance = {name!r}: the pool skypilot wants CLOUD/REGION/INSTANCE[/spot], as "
            "`crucible prices ls` shows them"
        )
    if found["cloud"] in OWN_MACHINES:  # a partition, a pool of machines: no types to choose from
        return {"infra": name}
    return {
        "infra": f"{found['cloud']}/{found['region']}",
        "instance_type": found["instance"],
        "accelerators": found["gpu"] or "",
        "use_spot": found["spot"] is not None,
    }
