"""Several ECS tasks for one flow run: one for each node, all or none.

The first task is the flow run's own, as prefect-aws starts it. Those of further nodes run `python -m tasks.node` with
the same definition, image and environment. They have the run's cost tags and none of Prefect's, so that their end says
nothing about the flow run; `startedBy` names it.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from prefect.client.schemas.objects import FlowRun

from crucible.contract import Variable
from crucible.pools.aws.observer import RUN_ID_TAG

FURTHER_NODE = ["python", "-m", "tasks.node"]
NODE_TAG = "crucible:node"
_PREFECT_TAGS = "prefect.io/"

logger = logging.getLogger("prefect.workers.ecs.nodes")


def create_tasks(create: Callable[[Any, dict[str, Any]], Any], client: Any, request: dict[str, Any]) -> Any:
    """Start the tasks of a flow run with `create`; returns the first one's, which is the run's own.

    Whether all of them find a machine turns out later: the first node waits for the others, and ends the attempt when
    one does not come. Raises what `create` raises, after it has stopped what was started.
    """
    environment = request["overrides"]["containerOverrides"][0].get("environment", [])
    count = int(next((item["value"] for item in environment if item["name"] == Variable.NODES), "1"))
    first = create(client, request)
    started = [first]
    try:
        for rank in range(1, count):
            started.append(create(client, _further(request, rank)))
    except Exception:
        for task in started:
            with suppress(BotoCoreError, ClientError):
                client.stop_task(cluster=task["clusterArn"], task=task["taskArn"], reason="not all nodes could start")
        raise
    return first


def stop_further_tasks(client: Any, cluster: str, run: FlowRun) -> None:
    """Stop the tasks of a run's further nodes, those that wait for a machine above all. Raises what AWS raises."""
    pages = client.get_paginator("list_tasks").paginate(cluster=cluster, startedBy=str(run.id))
    for arn in [arn for page in pages for arn in page["taskArns"]]:
        client.stop_task(cluster=cluster, task=arn, reason=f"flow run {run.id} is over")
        logger.info("stopped task %s, a node of flow run %s, which is over", arn, run.id)


def _further(request: dict[str, Any], rank: int) -> dict[str, Any]:
    container, *more = request["overrides"]["containerOverrides"]
    environment = [*container.get("environment", []), {"name": Variable.NODE_RANK.value, "value": str(rank)}]
    own = {**container, "command": FURTHER_NODE, "environment": environment}
    tags = request.get("tags", [])
    run_id = next((tag["value"] for tag in tags if tag["key"] == RUN_ID_TAG), "")
    kept = [tag for tag in tags if not tag["key"].startswith(_PREFECT_TAGS)]
    return {
        **request,
        "overrides": {**request["overrides"], "containerOverrides": [own, *more]},
        "tags": [*kept, {"key": NODE_TAG, "value": str(rank)}],
        "startedBy": run_id,
    }
