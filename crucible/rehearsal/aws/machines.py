"""Scaling groups and the spot market: instances that come when there is capacity, and go when the market says so.

moto answers the API; whether, when and as what an instance comes is decided here, and what happens to it.
"""

from __future__ import annotations

import functools
import itertools
import time
import uuid
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import boto3
from moto.autoscaling.models import FakeAutoScalingGroup, InstanceState, autoscaling_backends
from moto.autoscaling.responses import AutoScalingResponse
from moto.core.responses import ActionResult
from moto.ec2.models import ec2_backends
from moto.ec2.models.instance_types import INSTANCE_TYPES

from crucible.rehearsal.aws.metadata import MetadataService
from crucible.rehearsal.aws.patching import replace
from crucible.rehearsal.aws.settings import ACCOUNT, Settings

SPOT, ON_DEMAND = "spot", "on-demand"
RETRY_SECONDS = 1.0

# EC2 Auto Scaling's words for a launch that failed (user guide, "Troubleshoot instance launch failures").
NO_CAPACITY = {
    SPOT: "Could not launch Spot Instances. InsufficientInstanceCapacity - There is no Spot capacity available that "
    "matches your request. Launching EC2 instance failed.",
    ON_DEMAND: "We currently do not have sufficient {type} capacity in the Availability Zone you requested ({zone}). "
    "Our system will be working on provisioning additional capacity. Launching EC2 instance failed. "
    "InsufficientInstanceCapacity",
}
NO_QUOTA = {
    SPOT: "Could not launch Spot Instances. MaxSpotInstanceCountExceeded - Max spot instance count exceeded. "
    "Launching EC2 instance failed.",
    ON_DEMAND: "VcpuLimitExceeded - You have requested more vCPU capacity than your current vCPU limit of 0 allows for "
    "the instance bucket that the specified instance type belongs to. Launching EC2 instance failed.",
}


@dataclass
class Machine:
    """One instance, from launch to its end."""

    instance_id: str
    instance_type: str
    zone: str
    lifecycle: str
    group: str
    ready_at: float
    idle_since: float
    cpu_units: int
    memory_mib: int
    gpus: list[str]
    registered: bool = False
    draining: bool = False
    """It has its notice: ECS puts no new task on it."""
    goes_at: float | None = None


@dataclass
class Market:
    """What can be had. Lifecycles in `drought` have no capacity, those in `no_quota` no allowance."""

    drought: set[str] = field(default_factory=set)
    no_quota: set[str] = field(default_factory=set)


class Machines:
    """All instances of the account's scaling groups."""

    def __init__(
        self,
        settings: Settings,
        endpoint: Callable[[], str],
        access_key: str,
        metadata: MetadataService,
        put_event: Callable[[str, str, dict[str, Any]], None],
        say: Callable[[str], None],
    ) -> None:
        self.settings, self._endpoint, self._access_key = settings, endpoint, access_key
        self.metadata = metadata
        self.put_event, self.say = put_event, say
        self.market = Market()
        self.machines: dict[str, Machine] = {}
        self.on_lost: Callable[[Machine, float], None] = lambda machine, shutdown_seconds: None
        self._ec2 = ec2_backends[ACCOUNT][settings.region]
        self._scaling = autoscaling_backends[ACCOUNT][settings.region]
        self._turn = itertools.count()
        self._activities: dict[str, list[dict[str, Any]]] = defaultdict(list)
        self._next_launch: dict[str, float] = {}
        _let_groups_be(self._activities)

    @functools.cached_property
    def _client(self) -> Any:
        keys = {"aws_access_key_id": self._access_key, "aws_secret_access_key": "rehearsal"}
        return boto3.client("ec2", endpoint_url=self._endpoint(), region_name=self.settings.region, **keys)

    def want(self, group_name: str, machines: int) -> None:
        """What ECS's managed scaling sets: so many instances, within the group's limits."""
        group: Any = self._scaling.autoscaling_groups[group_name]
        group.desired_capacity = max(int(group.min_size), min(machines, int(group.max_size)))

    def tick(self, busy: Callable[[str], bool]) -> None:
        """Bring the groups to their desired size, boot what was launched, end what is due; `busy(instance id)`."""
        now = time.monotonic()
        for machine in list(self.machines.values()):
            if self._ec2.get_instance(machine.instance_id).state not in ("running", "pending"):
                self._gone(machine, self.settings.shutdown_seconds)  # terminated through the API
            elif machine.goes_at is not None and now >= machine.goes_at:
                self.say(f"{machine.instance_id} is taken back")
                self.end(machine.instance_id)
            elif busy(machine.instance_id):
                machine.idle_since = now
            elif now - machine.idle_since > self.settings.idle_seconds:
                self.say(f"{machine.instance_id} was idle and is given back")
                self.want(machine.group, self._size(machine.group) - 1)
                self.end(machine.instance_id)
        for group in list(self._scaling.autoscaling_groups.values()):
            missing = (group.desired_capacity or 0) - self._size(group.name)
            paused = any(process["ProcessName"] == "Launch" for process in group.suspended_processes)
            if missing > 0 and not paused and now >= self._next_launch.get(group.name, 0.0):
                self._launch(group)

    def end(self, instance_id: str, *, shutdown_seconds: float | None = None) -> None:
        """The host goes now; its containers get SIGTERM and so many seconds, or nothing at all (0)."""
        machine = self.machines[instance_id]
        self._ec2.terminate_instances([instance_id])
        self._gone(machine, self.settings.shutdown_seconds if shutdown_seconds is None else shutdown_seconds)

    def give_notice(self, instance_id: str, seconds: float) -> None:
        """The spot notice: the instance goes in so many seconds. ECS drains it, and leaves its tasks running."""
        machine = self._spot(instance_id)
        machine.draining, machine.goes_at = True, time.monotonic() + seconds
        self.metadata.announce_reclaim(instance_id, time.time() + seconds)
        detail = {"instance-id": instance_id, "instance-action": "terminate"}
        self.put_event("aws.ec2", "EC2 Spot Instance Interruption Warning", detail)
        self.say(f"{instance_id} has its spot notice: {seconds:g} s")

    def recommend_rebalance(self, instance_id: str) -> None:
        """AWS sees a raised risk for this spot instance."""
        self._spot(instance_id)
        self.metadata.recommend_rebalance(instance_id)
        self.put_event("aws.ec2", "EC2 Instance Rebalance Recommendation", {"instance-id": instance_id})

    def _spot(self, instance_id: str) -> Machine:
        machine = self.machines.get(instance_id)
        if machine is None:
            raise LookupError(f"there is no instance {instance_id} now")
        if machine.lifecycle != SPOT:
            raise LookupError(f"{instance_id} is an on-demand instance: those are not reclaimed")
        return machine

    def _size(self, group_name: str) -> int:
        return sum(machine.group == group_name for machine in self.machines.values())

    def _launch(self, group: Any) -> None:
        policy = group.mixed_instances_policy
        lifecycle = SPOT if _all_spot(policy) else ON_DEMAND
        turn = next(self._turn)
        types = [override["InstanceType"] for override in policy["LaunchTemplate"]["Overrides"]]
        instance_type = types[turn % len(types)]
        subnets = group.vpc_zone_identifier.split(",")
        subnet = subnets[turn % len(subnets)]
        zone = self._ec2.get_subnet(subnet).availability_zone
        for refusals, words in ((self.market.no_quota, NO_QUOTA), (self.market.drought, NO_CAPACITY)):
            if lifecycle in refusals:
                self._record_failure(group.name, words[lifecycle].format(type=instance_type, zone=zone))
                return
        market = {"InstanceMarketOptions": {"MarketType": "spot"}} if lifecycle == SPOT else {}
        template = group.ec2_launch_template
        answer = self._client.run_instances(
            MinCount=1,
            MaxCount=1,
            ImageId=group.image_id,
            InstanceType=instance_type,
            SubnetId=subnet,
            LaunchTemplate={"LaunchTemplateId": template.id, "Version": group.launch_template_version},
            **market,
        )
        instance_id = answer["Instances"][0]["InstanceId"]
        instance: Any = self._ec2.get_instance(instance_id)
        instance.autoscaling_group = group
        group.instance_states.append(
            InstanceState(instance, protected_from_scale_in=group.new_instances_protected_from_scale_in)
        )
        now = time.monotonic()
        facts = INSTANCE_TYPES[instance_type]
        gpus = self.settings.gpus_per_instance or sum(gpu["Count"] for gpu in facts.get("GpuInfo", {}).get("Gpus", []))
        self.machines[instance_id] = Machine(
            instance_id=instance_id,
            instance_type=instance_type,
            zone=zone,
            lifecycle=lifecycle,
            group=group.name,
            ready_at=now + self.settings.boot_seconds,
            idle_since=now + self.settings.boot_seconds,
            cpu_units=1024 * facts["VCpuInfo"]["DefaultVCpus"],
            memory_mib=int(0.94 * facts["MemoryInfo"]["SizeInMiB"]),  # what ECS registers, after kernel and agent
            gpus=[f"GPU-{uuid.uuid4()}" for _ in range(gpus)],
        )
        self.metadata.add_instance(
            instance_id, instance_type=instance_type, zone=zone, lifecycle=lifecycle, image_id=group.image_id
        )
        self.say(f"{group.name} launches {instance_id}, {lifecycle} {instance_type} in {zone}")

    def _record_failure(self, group_name: str, message: str) -> None:
        self._next_launch[group_name] = time.monotonic() + RETRY_SECONDS
        now = datetime.now(UTC)
        self._activities[group_name].insert(
            0,
            {
                "ActivityId": str(uuid.uuid4()),
                "AutoScalingGroupName": group_name,
                "Description": "Launching a new EC2 instance.  Status Reason: " + message,
                "Cause": "an instance was started in response to a difference between desired and actual capacity",
                "StartTime": now,
                "EndTime": now,
                "StatusCode": "Failed",
                "StatusMessage": message,
                "Progress": 100,
                "Details": "{}",
            },
        )
        del self._activities[group_name][100:]
        if len(self._activities[group_name]) == 1:
            self.say(f"{group_name}: {message}")

    def _gone(self, machine: Machine, shutdown_seconds: float) -> None:
        self.machines.pop(machine.instance_id, None)
        self.metadata.remove_instance(machine.instance_id)
        group = self._scaling.autoscaling_groups.get(machine.group)
        if group is not None:
            group.instance_states = [s for s in group.instance_states if s.instance.id != machine.instance_id]
        self.on_lost(machine, shutdown_seconds)


def _all_spot(policy: dict[str, Any]) -> bool:
    return int(policy.get("InstancesDistribution", {}).get("OnDemandPercentageAboveBaseCapacity", 100)) == 0


def _let_groups_be(activities: dict[str, list[dict[str, Any]]]) -> None:
    """Keep moto from launching and replacing by itself, and let it report failed launches."""

    def set_desired_capacity(group: Any, new_capacity: int | None) -> None:
        group.desired_capacity = group.min_size if new_capacity is None else new_capacity

    def replace_instances(group: Any, count_needed: int, propagated_tags: dict[str, str]) -> None:
        """The next tick does it."""

    def describe_scaling_activities(response: Any) -> ActionResult:
        name = response._get_param("AutoScalingGroupName")
        found = activities[name] if name else [a for group in activities.values() for a in group]
        return ActionResult({"Activities": found})

    replace(
        FakeAutoScalingGroup,
        set_desired_capacity=set_desired_capacity,
        replace_autoscaling_group_instances=replace_instances,
    )
    replace(AutoScalingResponse, describe_scaling_activities=describe_scaling_activities)
