"""The worker of an AWS pool, of the type `crucible-ecs`: prefect-aws's, with an observer and a cancellation of our own.

prefect-aws's own type `ecs`, and workers of it, stay as they are.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping
from contextlib import AsyncExitStack
from typing import Any, Self

from prefect.client.schemas.objects import FlowRun
from prefect.settings import get_current_settings
from prefect_aws.workers import ECSWorker
from prefect_aws.workers.ecs_worker import ECSJobConfiguration
from pydantic import Field, field_validator

from crucible.contract import Variable
from crucible.errors import ConfigError
from crucible.pools.aws.cancellation import stopping_waiting_tasks
from crucible.pools.aws.limits import problems
from crucible.pools.aws.nodes import create_tasks
from crucible.pools.aws.observer import observing
from crucible.pools.aws.pools import WORKER_TYPE as TYPE
from crucible.pools.aws.stack import StackState
from crucible.pools.common.environment import CREDENTIALS, passing, revealing
from crucible.pools.common.event_driven import EventDrivenWorker
from crucible.pools.common.offered import require_offered
from crucible.resources import Resources


class EcsJobConfiguration(ECSJobConfiguration):
    """How one flow run is to be run as an ECS task, or as one for each of its nodes."""

    nodes: str = Field(default="", description="Tasks that train together. Empty: 1.")

    @field_validator("nodes", mode="before")
    @classmethod
    def _nodes(cls, value: Any) -> str:
        return Resources(nodes=value).nodes

    @classmethod
    async def from_template_and_values(
        cls, base_job_template: dict[str, Any], values: dict[str, Any], client: Any = None
    ) -> Self:
        """Fill the pool's template. Raises `ConfigError` naming each job variable that the pool does not offer."""
        require_offered(base_job_template, values)
        return await super().from_template_and_values(base_job_template, values, client=client)

    def prepare_for_flow_run(self, flow_run: FlowRun, *args: Any, **kwargs: Any) -> None:
        """As prefect-aws does it, but nothing secret stands in the request for the task.

        Raises:
            ConfigError: ECS would refuse the task, or the Prefect API wants a password and the pool names no secret
                that holds it.
        """
        asked_for = set(self.env)
        own = get_current_settings().to_environment_variables(exclude_unset=True)
        secrets = (self.prefect_api_key_secret_arn, self.prefect_api_auth_string_secret_arn)
        for name, secret in zip(CREDENTIALS, secrets, strict=True):
            if not secret and (own.get(name) or self.env.get(name)):
                raise ConfigError(
                    f"{name}: the Prefect API wants it, and the pool has no secret with it. Put it into AWS Secrets "
                    "Manager (aws secretsmanager create-secret), then run: crucible aws up --set "
                    "PrefectAuthSecretArn=ARN"
                )
            self.env.setdefault(name, "")  # prefect-aws wants to remove it
        super().prepare_for_flow_run(flow_run, *args, **kwargs)
        self.env = passing(self.env, asked_for - set(CREDENTIALS))
        for name in CREDENTIALS:
            self.env.pop(name, None)
        if (count := Resources(nodes=self.nodes).node_range.most) > 1:
            self.env[Variable.NODES.value] = str(count)
        if given_away := revealing(self.env, asked_for):
            raise ConfigError(given_away)
        found = list(problems(self.task_definition, self.task_run_request, self.command, self.env, self.labels))
        if found:
            raise ConfigError("; ".join(found))


class EcsWorker(EventDrivenWorker, ECSWorker):
    """Runs flow runs as ECS tasks on EC2 machines with GPUs."""

    type = TYPE
    job_configuration = EcsJobConfiguration
    _display_name = "Crucible ECS"
    _description = "Run flow runs as ECS tasks on EC2 machines with GPUs."

    async def __aenter__(self) -> EcsWorker:
        # Not ECSWorker's own: it starts prefect-aws's observer, which would handle the same events.
        await super(ECSWorker, self).__aenter__()
        self._background = AsyncExitStack()
        await self._background.enter_async_context(observing())
        await self._background.enter_async_context(stopping_waiting_tasks(self))
        return self

    def _create_task_run(self, ecs_client: Any, task_run_request: dict[str, Any]) -> Any:
        """Start the flow run's task, and those of its further nodes: all, or none."""
        return create_tasks(super()._create_task_run, ecs_client, task_run_request)

    async def __aexit__(self, *exc_info: Any) -> None:
        await self._background.aclose()
        await super().__aexit__(*exc_info)


def worker_environment(state: StackState, profile: str | None = None) -> dict[str, str]:
    """What the worker's environment needs beyond the usual: the event queue and the region.

    The observer reads both from environment variables only, and without them it does nothing.
    """
    environment = {
        "PREFECT_INTEGRATIONS_AWS_ECS_OBSERVER_SQS_QUEUE_NAME": state.outputs["TaskEventsQueue"],
        "AWS_DEFAULT_REGION": state.region,
        "AWS_REGION": state.region,
    }
    return environment | ({"AWS_PROFILE": profile} if profile else {})


def worker_command(pool: str) -> list[str]:
    """The command line that runs a worker of `pool`."""
    return [sys.executable, "-m", "crucible.pools.aws", "worker", "start", "--pool", pool, "--type", TYPE]


def run_worker(pool: str, state: StackState, profile: str | None = None) -> None:
    """Become the pool's worker: replaces this process, so that signals reach it. Does not return."""
    environment: Mapping[str, str] = {**os.environ, **worker_environment(state, profile)}
    command = worker_command(pool)
    os.execve(command[0], command, dict(environment))
