"""The machine under this process: what EC2 says of it, and what it costs now."""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from prefect.runtime import flow_run

from crucible.agent.nodes import Nodes
from crucible.agent.notices_ec2 import Ec2MetadataNotices
from crucible.billing.machine_price import EC2_POOLS, machine_price
from crucible.catalog.ec2 import PriceUnavailable, spot_price
from crucible.catalog.offers import load_catalog
from crucible.container import usable_cpus
from crucible.jobs.records import Claim, Launch


def machine_tags() -> list[str]:
    """Which machine of EC2 this is, as tags by which a flow run's supervisor knows its price; empty elsewhere."""
    if not {f"pool:{pool}" for pool in EC2_POOLS} & set(flow_run.tags):
        return []
    identity = Machine.here().identity
    names = {"instance": "instance_type", "lifecycle": "lifecycle", "zone": "zone"}
    return [f"{tag}:{identity[name]}" for tag, name in names.items() if identity.get(name)]


@dataclass(frozen=True)
class Machine:
    """The EC2 instance under this process as its metadata describe it; empty elsewhere."""

    identity: Mapping[str, str]

    @classmethod
    def here(cls) -> Machine:
        """Ask the metadata service."""
        return cls(Ec2MetadataNotices().instance_identity() or {})

    def read_spot_price(self) -> float:
        """USD per hour now. Raises `PriceUnavailable`, also for a machine that is not on the spot market."""
        if self.identity.get("lifecycle") != "spot":
            raise PriceUnavailable("the machine is not on the spot market")
        return spot_price(self.identity["instance_type"], self.identity["zone"])

    def current_price(self) -> float | None:
        """USD per hour of this machine now; None where it has no spot price."""
        with suppress(PriceUnavailable):
            return self.read_spot_price()
        return None

    def claim(self, number: int, launch: Launch, nodes: Nodes | None = None) -> Claim:
        """Claim the attempt for this machine and the `nodes` that train with it. Until their own reports say more, each
        is taken for a machine like this one."""
        count, held = (nodes.count, nodes.held) if nodes is not None else (1, 1)
        facts: dict[str, Any] = dict(self.identity)
        instance = self.identity.get("instance_type") or launch.instance
        lifecycle, spot_usd_per_hour = self.identity.get("lifecycle", ""), None
        if lifecycle == "spot":
            try:
                facts["spot_usd_per_hour"] = spot_usd_per_hour = self.read_spot_price()
            except PriceUnavailable as error:
                facts["spot_price_unavailable"] = str(error)
        offers = {offer.key: offer for offer in load_catalog()}
        price = machine_price(launch, instance, lifecycle, spot_usd_per_hour, offers)
        return Claim(
            number=number,
            flow_run_id=str(flow_run.id or ""),
            instance=instance,
            nodes=count,
            usd_per_hour=held * price.usd_per_hour,
            price_remark=price.remark or (f"{held} nodes are paid for, and {count} train" if held > count else ""),
            environment={"python": sys.version.split()[0], "cpus": usable_cpus(), **_image(), **facts},
        )


def _image() -> dict[str, str]:
    """The container image, by its content digest; nothing outside containers."""
    image = os.environ.get("CRUCIBLE_IMAGE")
    return {"image": image} if image else {}
