"""One ECS task of the rehearsed cloud: what was asked for, what became of it, and how ECS describes it."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from crucible.rehearsal.aws.containers import Container
from crucible.rehearsal.aws.machines import Machine


@dataclass
class Run:
    """One task, and what is known of it besides moto's record."""

    task: Any
    definition: Any
    group: str
    """Scaling group of its capacity provider."""
    created: float
    environment: dict[str, str] = field(default_factory=dict)
    container: Container | None = None
    machine: Machine | None = None
    gpus: list[str] = field(default_factory=list)
    kill_at: float = math.inf
    described_at: float = 0.0
    """When ECS may announce the end: later than the end itself if the host is gone."""
    host_gone: bool = False
    version: int = 0
    shipped_at: float = 0.0

    @property
    def spec(self) -> dict[str, Any]:
        """The definition of its one container."""
        return dict(self.definition.container_definitions[0])

    @property
    def override(self) -> dict[str, Any]:
        overrides = (self.task.overrides or {}).get("containerOverrides", [])
        return next((dict(o) for o in overrides if o.get("name") == self.spec["name"]), {})

    @property
    def gpus_wanted(self) -> int:
        wanted = self.override.get("resourceRequirements") or self.spec.get("resourceRequirements") or []
        return sum(int(item["value"]) for item in wanted if item["type"] == "GPU")

    @property
    def cpu_units(self) -> int:
        return int(self.override.get("cpu") or self.spec.get("cpu") or 0)

    @property
    def memory_mib(self) -> int:
        return int(self.override.get("memory") or self.spec.get("memory") or 0)

    @property
    def id(self) -> str:
        return str(self.task.task_arn.rsplit("/", 1)[-1])

    def event_detail(self) -> dict[str, Any]:
        """What EventBridge carries for the task's state now (ECS developer guide, "Task state change events")."""
        self.version += 1
        task = self.task
        detail: dict[str, Any] = {
            "clusterArn": task.cluster_arn,
            "taskArn": task.task_arn,
            "taskDefinitionArn": task.task_definition_arn,
            "capacityProviderName": task.capacity_provider_name,
            "containerInstanceArn": task.container_instance_arn,
            "group": task.group,
            "launchType": task.launch_type,
            "startedBy": task.started_by,
            "lastStatus": task.last_status,
            "desiredStatus": task.desired_status,
            "version": self.version,
            "updatedAt": datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.000Z"),
            "containers": [_container(task, container) for container in task.containers],
        }
        if task.last_status == "STOPPED":
            detail |= {"stopCode": task.stop_code, "stoppedReason": task.stopped_reason}
        return detail

    def words(self) -> str:
        """The same for people."""
        task = self.task
        if task.last_status != "STOPPED":
            return f"task {self.id[:8]} {task.last_status}"
        code = task.containers[0].exitCode if task.containers else None
        return f"task {self.id[:8]} STOPPED, exit code {code}: {task.stop_code}: {task.stopped_reason}"


def _container(task: Any, container: Any) -> dict[str, Any]:
    described = {
        "name": container.name,
        "image": container.image,
        "containerArn": container.container_arn,
        "taskArn": task.task_arn,
        "lastStatus": container.last_status,
    }
    if container.exitCode is not None:
        described["exitCode"] = container.exitCode
    if reason := getattr(container, "reason", None):
        described["reason"] = reason
    return described
