"""A Prefect plugin: `prefect deployment run train-nanogpt`, without the name of the flow before it.

Prefect's command line wants FLOW/DEPLOYMENT. This looks up a name without a slash among all deployments; if exactly one
has it, that one is meant. Anything else, and any change in Prefect that this does not know, is left to Prefect itself.
Prefect loads it in every process where `prefect.toml` or the profile enables the plugin `crucible`.
"""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING, Any

from prefect.plugins import register_hook

if TYPE_CHECKING:
    from prefect.client.orchestration._deployments.client import DeploymentAsyncClient
    from prefect.client.schemas.responses import DeploymentResponse

logger = logging.getLogger(__name__)


@register_hook
def setup_environment(*, ctx: Any) -> None:
    """Called by Prefect while it is being imported."""
    try:
        from prefect.client.orchestration._deployments.client import DeploymentAsyncClient as Client

        original = Client.read_deployment_by_name
    except (ImportError, AttributeError) as error:
        logger.debug("This Prefect keeps its deployment client elsewhere; names need their flow: %s", error)
        return

    async def read_deployment_by_name(self: Client, name: str) -> DeploymentResponse:
        if "/" not in name and (only := await _only_deployment(self, name)):
            return only
        return await original(self, name)

    Client.read_deployment_by_name = read_deployment_by_name  # type: ignore[method-assign]


async def _only_deployment(client: DeploymentAsyncClient, name: str) -> DeploymentResponse | None:
    """The deployment of that name, if there is exactly one."""
    try:
        from prefect.client.schemas.filters import DeploymentFilter, DeploymentFilterName

        wanted = DeploymentFilter(name=DeploymentFilterName(any_=[name]))
        found = await client.read_deployments(deployment_filter=wanted)
    except (ImportError, AttributeError, TypeError, ValueError) as error:
        logger.debug("This Prefect looks deployments up in another way; names need their flow: %s", error)
        return None
    return found[0] if len(found) == 1 else None
