"""What runs inside rehearsed ECS tasks: a flow that says where it is."""

from __future__ import annotations

import os
from typing import Any

from prefect import flow

from crucible.agent.notices_ec2 import Ec2MetadataNotices


@flow(log_prints=True)
def where() -> dict[str, Any]:
    """Print and return the machine's identity and what the task's definition gave it."""
    identity = Ec2MetadataNotices().instance_identity() or {}
    seen = {
        "instance_type": identity["instance_type"],
        "lifecycle": identity["lifecycle"],
        "gpus": os.environ["NVIDIA_VISIBLE_DEVICES"],
        "store": os.environ["CRUCIBLE_STORE"],
        "grace": float(os.environ["CRUCIBLE_STOP_GRACE_SECONDS"]),
    }
    print(f"running on {seen}")
    return seen
