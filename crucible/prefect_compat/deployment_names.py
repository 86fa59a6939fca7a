"""A Prefect plugin: `prefect deployment run train-nanogpt`, without the name of the flow before it.

Prefect's commands want FLOW/DEPLOYMENT. In `prefect deployment …`, and nowhere else, this completes a bare name on the
command line before Prefect reads it, if exactly one deployment has that name. It replaces nothing in Prefect. Prefect
loads it where `prefect.toml` or the profile enables the plugin `crucible`.

Upstream issue: none found. Delete this when Prefect accepts a deployment's name alone.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from prefect.plugins import register_hook

from crucible.loopback import bypass_proxies
from crucible.prefect_compat.finite_parameters import with_finite_parameters
from crucible.prefect_compat.own_password import withhold_from_others

FLAGS = frozenset({"--watch", "--no-watch", "--all", "--replace", "--accept-yes", "-y", "--active", "--no-active"})
"""Options of `prefect deployment …` that no value follows."""

logger = logging.getLogger(__name__)


@register_hook
async def setup_environment(*, ctx: Any) -> None:
    """Called by Prefect while it is being imported: complete the name on this process's command line.

    Also keeps requests to a server on this machine from going through a proxy, the local server's password from going
    to another one, and NaN from becoming "no value".
    """
    bypass_proxies(os.environ)
    withhold_from_others(os.environ)
    arguments = command_arguments(sys.argv, sys.orig_argv)
    start = len(sys.argv) - len(arguments)
    if "deployment" in arguments:
        sys.argv[start:] = with_finite_parameters(arguments)
    place = name_at(arguments)
    if place is None:
        return
    name = arguments[place]
    full = await full_name(name, _option(arguments, "--profile", "-p"))
    if full is not None:
        sys.argv[start + place] = full  # in place: `python -m` keeps the list while Prefect is imported


def command_arguments(argv: Sequence[str], original: Sequence[str]) -> list[str]:
    """The arguments of the `prefect` command that this process is; empty for any other program."""
    if Path(argv[0]).name in ("prefect", "prefect.exe"):
        return list(argv[1:])
    if "-m" in original:
        module = original.index("-m") + 1
        if original[module : module + 1] == ["prefect"]:
            return list(original[module + 1 :])
    return []


def name_at(arguments: Sequence[str]) -> int | None:
    """Where a deployment's bare name stands in the arguments of `prefect`; None: nowhere."""
    if "deployment" not in arguments:
        return None
    words = ["deployment"]
    taken = False  # by the option before it
    for place in range(arguments.index("deployment") + 1, len(arguments)):
        argument = arguments[place]
        if argument.startswith("-"):
            taken = "=" not in argument and argument not in FLAGS
        elif taken:
            taken = False
        elif len(words) == 1 or words == ["deployment", "schedule"]:
            words.append(argument)  # the command itself
        else:
            return place if "/" not in argument else None
    return None


async def full_name(name: str, profile: str | None = None) -> str | None:
    """FLOW/DEPLOYMENT of the only deployment of that name; None: there is none, or several, or no server."""
    try:
        from prefect.client.orchestration import get_client
        from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName
        from prefect.context import use_profile

        selected = use_profile(profile, override_environment_variables=True) if profile else nullcontext()
        with selected:
            async with get_client() as client:
                wanted = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
                found = await client.read_deployments(deployment_filter=wanted)
                if len(found) != 1:
                    return None
                return f"{(await client.read_flow(found[0].flow_id)).name}/{name}"
    except Exception as error:  # noqa: BLE001 - Prefect itself answers what is wrong with the name or the server
        logger.debug("the deployment name %s is left as it is: %r", name, error)
        return None


def _option(arguments: Sequence[str], *names: str) -> str | None:
    """The value of an option of `prefect` itself, which stands before the command."""
    before = arguments[: arguments.index("deployment")]
    for place, argument in enumerate(before):
        option, equals, value = argument.partition("=")
        if option in names:
            return value if equals else next(iter(before[place + 1 :]), None)
    return None
