"""The emergency stop: end every task and every machine of a stack, whatever state its training is in.

Tasks first, so that each gets SIGTERM and saves; then the machines. Launching stays suspended until `release`.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from crucible.pools.aws.errors import AwsError, aws_errors
from crucible.pools.aws.session import Aws
from crucible.pools.aws.stack import StackState

REASON = "Stopped by crucible aws stop-all"
SAVE_SECONDS = 130.0
"""The pools' stop timeout, and some: how long tasks may take to save."""
POLL_SECONDS = 2.0


@dataclass
class Stopped:
    """What the emergency stop ended."""

    tasks: list[str] = field(default_factory=list)
    instances: list[str] = field(default_factory=list)


def stop_all(
    aws: Aws, state: StackState, say: Callable[[str], None] = lambda _: None, *, save_seconds: float = SAVE_SECONDS
) -> Stopped:
    """Suspend launching, stop all tasks, wait for them to save, terminate all instances; nothing is left running.

    What AWS refuses of one task or machine keeps no other one running. Raises `AwsError` if a machine is still there at
    the end, or AWS does not list them; run it again then, it goes on from where it was.
    """
    cluster, groups = state.outputs["ClusterArn"], [state.outputs["SpotGroup"], state.outputs["OnDemandGroup"]]
    scaling, ecs = aws.client("autoscaling"), aws.client("ecs")
    stopped, refused = Stopped(), list[Exception]()
    with aws_errors(f"Stopping everything of stack {state.name}", aws.region):
        for group in groups:
            scaling.suspend_processes(AutoScalingGroupName=group, ScalingProcesses=["Launch"])
        say("launching is suspended")
        stopped.tasks = running_tasks(ecs, cluster)
        for task in stopped.tasks:
            with _noted(refused):
                ecs.stop_task(cluster=cluster, task=task, reason=REASON)
        if stopped.tasks:
            say(f"{len(stopped.tasks)} tasks are asked to stop; each has up to {save_seconds:.0f} s to save")
        deadline = time.monotonic() + save_seconds
        while (left := running_tasks(ecs, cluster, ended_too=True)) and time.monotonic() < deadline:
            time.sleep(POLL_SECONDS)
        if left:
            say(f"{len(left)} tasks did not end in time and go with their machines")
        for group in groups:
            for instance in instances_of(scaling, group):
                with _noted(refused):
                    scaling.terminate_instance_in_auto_scaling_group(
                        InstanceId=instance, ShouldDecrementDesiredCapacity=True
                    )
                    stopped.instances.append(instance)
            with _noted(refused):
                scaling.set_desired_capacity(AutoScalingGroupName=group, DesiredCapacity=0)
        say(f"{len(stopped.instances)} instances are being terminated")
        deadline = time.monotonic() + 300
        while any(instances_of(scaling, group) for group in groups):
            if time.monotonic() > deadline:
                said = f"; AWS said: {refused[-1]}" if refused else ""
                raise AwsError(
                    f"instances of {state.name} are still there after 5 minutes: see `crucible aws status`{said}"
                )
            time.sleep(POLL_SECONDS)
    return stopped


@contextmanager
def _noted(refused: list[Exception]) -> Iterator[None]:
    """Go on after what AWS refuses: the rest costs money, too."""
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        yield
    except (BotoCoreError, ClientError) as error:
        refused.append(error)


def release(aws: Aws, state: StackState) -> None:
    """Let the groups launch instances again."""
    scaling = aws.client("autoscaling")
    with aws_errors(f"Resuming stack {state.name}", aws.region):
        for group in (state.outputs["SpotGroup"], state.outputs["OnDemandGroup"]):
            scaling.resume_processes(AutoScalingGroupName=group, ScalingProcesses=["Launch"])


def running_tasks(ecs: Any, cluster: str, *, ended_too: bool = False) -> list[str]:
    """ARNs of running tasks; with `ended_too`, also of those that are stopping."""
    arns = _list_tasks(ecs, cluster, "RUNNING")
    if ended_too:
        stopping = _list_tasks(ecs, cluster, "STOPPED")
        for start in range(0, len(stopping), 100):
            tasks = ecs.describe_tasks(cluster=cluster, tasks=stopping[start : start + 100])["tasks"]
            arns += [task["taskArn"] for task in tasks if task["lastStatus"] != "STOPPED"]
    return arns


def _list_tasks(ecs: Any, cluster: str, desired: str) -> list[str]:
    pages = ecs.get_paginator("list_tasks").paginate(cluster=cluster, desiredStatus=desired)
    return [arn for page in pages for arn in page["taskArns"]]


def instances_of(scaling: Any, group: str) -> list[str]:
    """Ids of a group's instances that are not already on their way out."""
    groups = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[group])["AutoScalingGroups"]
    return [
        instance["InstanceId"]
        for found in groups
        for instance in found["Instances"]
        if not instance["LifecycleState"].startswith("Terminat")
    ]
