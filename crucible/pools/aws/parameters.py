"""From the options of `crucible aws up` to the template's parameters, checked before AWS is asked."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence

from crucible.errors import ConfigError

TYPE_SLOTS = 6
INSTANCE_TYPE = re.compile(r"[a-z][a-z0-9-]*\.[a-z0-9-]+")


def stack_parameters(
    *,
    types: str | None = None,
    max_spot: int | None = None,
    max_on_demand: int | None = None,
    project: str | None = None,
    owner: str | None = None,
    budget: float | None = None,
    email: str | None = None,
    vpc: str | None = None,
    subnets: str | None = None,
    cidr: str | None = None,
    settings: Sequence[str] = (),
) -> dict[str, str]:
    """The parameters that were given; what is left out keeps its value or the template's default.

    Raises `ConfigError` naming the option, its value and the fix.
    """
    parameters: dict[str, str] = {}
    if types is not None:
        parameters |= _types(types)
    if cidr is not None:
        parameters |= _network(cidr)
    if (vpc is None) != (subnets is None):
        given = f"vpc = {vpc!r}" if vpc else f"subnets = {subnets!r}"
        raise ConfigError(f"{given}: give --vpc and --subnets together, or neither for a VPC of its own")
    plain = {
        "MaxSpotInstances": max_spot,
        "MaxOnDemandInstances": max_on_demand,
        "Project": project,
        "Owner": owner,
        "MonthlyBudgetUsd": f"{budget:g}" if budget is not None else None,
        "BudgetEmail": email,
        "VpcId": vpc,
        "SubnetIds": subnets,
    }
    parameters |= {name: str(value) for name, value in plain.items() if value is not None}
    for setting in settings:
        name, equals, value = setting.partition("=")
        if not equals or not name.isidentifier():
            raise ConfigError(f"set = {setting!r}: write Name=value, a parameter of infrastructure/aws/crucible.yaml")
        parameters[name] = value
    return parameters


def _types(types: str) -> dict[str, str]:
    wanted = [name.strip() for name in types.split(",") if name.strip()]
    if not 1 <= len(wanted) <= TYPE_SLOTS:
        raise ConfigError(f"types = {types!r}: name one to {TYPE_SLOTS} instance types, separated by commas")
    for name in wanted:
        if not INSTANCE_TYPE.fullmatch(name):
            raise ConfigError(f"types = {name!r}: not an instance type; write for example g5.xlarge,g6.xlarge")
    if len(set(wanted)) < len(wanted):
        raise ConfigError(f"types = {types!r}: a type is named twice; AWS accepts each once")
    slots = wanted + [""] * (TYPE_SLOTS - len(wanted))
    return {f"Type{number}": name for number, name in enumerate(slots, start=1)}


def _network(cidr: str) -> dict[str, str]:
    """The VPC's range and three subnets within it, each a sixteenth."""
    try:
        network = ipaddress.ip_network(cidr)
    except ValueError as error:
        raise ConfigError(f"cidr = {cidr!r}: {error}; write for example 10.42.0.0/16") from error
    if not 16 <= network.prefixlen <= 24:
        raise ConfigError(f"cidr = {cidr!r}: AWS takes /16 to /28 for a VPC, and three subnets need /24 or larger")
    subnets = list(network.subnets(prefixlen_diff=4))[:3]
    return {"VpcCidr": str(network), "SubnetCidrs": ",".join(str(subnet) for subnet in subnets)}
