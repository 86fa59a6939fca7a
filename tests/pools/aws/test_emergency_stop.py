"""The emergency stop where AWS refuses a part of it."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from botocore.exceptions import ClientError

from crucible.pools.aws import emergency_stop
from crucible.pools.aws.emergency_stop import stop_all
from crucible.pools.aws.errors import AwsError
from crucible.pools.aws.stack import StackState

STATE = StackState(
    "crucible", "us-east-1", "CREATE_COMPLETE", "", {"ClusterArn": "c", "SpotGroup": "s", "OnDemandGroup": "o"}, {}
)


class Cloud:
    """Two groups with machines, and tasks that end when they are asked to."""

    def __init__(self) -> None:
        self.machines = {"s": ["i-gone", "i-1"], "o": ["i-2"]}
        self.tasks = ["t-throttled", "t-1"]
        self.region, self.desired = "us-east-1", dict[str, int]()
        self.stubborn = False

    def client(self, service: str) -> Any:
        return self

    def suspend_processes(self, **given: Any) -> None:
        """Launching is off."""

    def get_paginator(self, name: str) -> Any:
        def paginate(**given: str) -> list[Any]:
            return [{"taskArns": self.tasks if given["desiredStatus"] == "RUNNING" else []}]

        return SimpleNamespace(paginate=paginate)

    def stop_task(self, cluster: str, task: str, reason: str) -> None:
        if task == "t-throttled":
            raise ClientError({"Error": {"Code": "ThrottlingException", "Message": "Rate exceeded"}}, "StopTask")
        self.tasks.remove(task)

    def describe_auto_scaling_groups(self, **given: list[str]) -> Any:
        (name,) = given["AutoScalingGroupNames"]
        instances = [{"InstanceId": one, "LifecycleState": "InService"} for one in self.machines[name]]
        return {"AutoScalingGroups": [{"Instances": instances}]}

    def terminate_instance_in_auto_scaling_group(self, **given: Any) -> None:
        instance = given["InstanceId"]
        for group in self.machines.values():
            if instance in group and not (self.stubborn and instance == "i-gone"):
                group.remove(instance)
        if instance == "i-gone":  # reclaimed in the same moment
            error = {"Code": "ValidationError", "Message": "Instance Id not found - No managed instance found"}
            raise ClientError({"Error": error}, "TerminateInstanceInAutoScalingGroup")

    def set_desired_capacity(self, **given: Any) -> None:
        self.desired[given["AutoScalingGroupName"]] = given["DesiredCapacity"]


@pytest.fixture
def cloud(monkeypatch: pytest.MonkeyPatch) -> Cloud:
    clock = iter(range(10**6))
    fake_time = SimpleNamespace(monotonic=lambda: next(clock) * 10.0, sleep=lambda _: None)
    monkeypatch.setattr(emergency_stop, "time", fake_time)
    return Cloud()


def test_what_aws_refuses_of_one_machine_or_task_keeps_no_other_one_running(cloud: Cloud) -> None:
    stopped = stop_all(cloud, STATE)  # type: ignore[arg-type]
    assert cloud.tasks == ["t-throttled"]  # which went with its machine
    assert (cloud.machines, cloud.desired) == ({"s": [], "o": []}, {"s": 0, "o": 0})
    assert stopped.instances == ["i-1", "i-2"]


def test_a_machine_that_stays_is_reported_with_what_aws_said(cloud: Cloud) -> None:
    cloud.stubborn = True
    with pytest.raises(AwsError, match=r"still there after 5 minutes.*Instance Id not found"):
        stop_all(cloud, STATE)  # type: ignore[arg-type]
    assert cloud.machines == {"s": ["i-gone"], "o": []}
