"""What a stack is doing now: machines, tasks, why a machine does not come, recent spot warnings, and set-up checks."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, field
from datetime import UTC, datetime, timedelta
from functools import partial
from urllib.parse import urlsplit

from crucible.pools.aws import emergency_stop
from crucible.pools.aws.diagnosis import diagnose
from crucible.pools.aws.errors import AwsError, aws_errors
from crucible.pools.aws.pools import ON_DEMAND, SPOT
from crucible.pools.aws.session import Aws
from crucible.pools.aws.stack import StackState

# Service Quotas codes of EC2, counted in vCPUs.
QUOTAS = {SPOT: "L-3819A6DF", ON_DEMAND: "L-DB2E81BA"}
RECENT = timedelta(hours=1)


@dataclass
class Group:
    """One pool's machines."""

    pool: str
    desired: int
    maximum: int
    launching: bool
    """False while the emergency stop is on."""
    instances: list[dict[str, str]] = field(default_factory=list)
    troubles: list[str] = field(default_factory=list)
    """Why machines did not come, in the last hour."""


@dataclass
class Check:
    """One thing that must be right before a run can succeed."""

    name: str
    ok: bool | None
    """None: could not be found out."""
    message: str


@dataclass
class Status:
    """The stack as it stands."""

    stack: str
    region: str
    account: str
    status: str
    store: str
    groups: list[Group]
    tasks: list[dict[str, str]]
    spot_warnings: list[dict[str, str]]
    checks: list[Check]

    def to_json(self) -> str:
        return json.dumps(asdict(self), indent=2)


def status(aws: Aws, state: StackState, *, prefect_api_url: str | None = None, image: str | None = None) -> Status:
    """Ask AWS for all of it. Raises `AwsError`."""
    with aws_errors(f"Reading the status of stack {state.name}", aws.region):
        return Status(
            stack=state.name,
            region=aws.region,
            account=aws.account,
            status=state.status,
            store=state.outputs["StoreUri"],
            groups=[
                _group(aws, SPOT, state.outputs["SpotGroup"]),
                _group(aws, ON_DEMAND, state.outputs["OnDemandGroup"]),
            ],
            tasks=_tasks(aws, state.outputs["ClusterArn"]),
            spot_warnings=_spot_warnings(aws, state.outputs["SpotWarningsQueue"]),
            checks=checks(aws, state, prefect_api_url=prefect_api_url, image=image),
        )


def _group(aws: Aws, pool: str, name: str) -> Group:
    scaling = aws.client("autoscaling")
    found = scaling.describe_auto_scaling_groups(AutoScalingGroupNames=[name])["AutoScalingGroups"]
    if not found:
        raise AwsError(f"scaling group {name} is gone from {aws.region}: run `crucible aws up` to make it again")
    group = found[0]
    suspended = {process["ProcessName"] for process in group["SuspendedProcesses"]}
    oldest = datetime.now(UTC) - RECENT
    activities = scaling.describe_scaling_activities(AutoScalingGroupName=name)["Activities"]
    failed = [a for a in activities if a["StatusCode"] == "Failed" and a["StartTime"] > oldest]
    return Group(
        pool=pool,
        desired=group["DesiredCapacity"],
        maximum=group["MaxSize"],
        launching="Launch" not in suspended,
        instances=[
            {
                "id": instance["InstanceId"],
                "type": instance.get("InstanceType", ""),
                "zone": instance["AvailabilityZone"],
                "state": instance["LifecycleState"],
            }
            for instance in group["Instances"]
        ],
        troubles=list(dict.fromkeys(str(diagnose(activity["StatusMessage"])) for activity in failed)),
    )


def _tasks(aws: Aws, cluster: str) -> list[dict[str, str]]:
    ecs = aws.client("ecs")
    arns = emergency_stop.running_tasks(ecs, cluster, ended_too=True)
    tasks = []
    for start in range(0, len(arns), 100):
        for task in ecs.describe_tasks(cluster=cluster, tasks=arns[start : start + 100], include=["TAGS"])["tasks"]:
            tags = {tag["key"]: tag["value"] for tag in task.get("tags", [])}
            tasks.append(
                {
                    "id": task["taskArn"].rsplit("/", 1)[-1],
                    "status": task["lastStatus"],
                    "pool": tags.get("prefect.io/work-pool-name", ""),
                    "job": tags.get("crucible:job", ""),
                    "stage": tags.get("crucible:stage", ""),
                    "flow_run": tags.get("prefect.io/flow-run-name", ""),
                }
            )
    return tasks


def _spot_warnings(aws: Aws, queue: str) -> list[dict[str, str]]:
    """The newest warnings, left in the queue for the next reader."""
    sqs = aws.client("sqs")
    url = sqs.get_queue_url(QueueName=queue)["QueueUrl"]
    answer = sqs.receive_message(QueueUrl=url, MaxNumberOfMessages=10, VisibilityTimeout=0, WaitTimeSeconds=0)
    events = [json.loads(message["Body"]) for message in answer.get("Messages", [])]
    return [
        {"time": event["time"], "instance": event["detail"]["instance-id"], "warning": event["detail-type"]}
        for event in sorted(events, key=lambda event: event["time"], reverse=True)
    ]


def checks(aws: Aws, state: StackState, *, prefect_api_url: str | None, image: str | None) -> list[Check]:
    """What must hold for a run to start, each with what to do if it does not. Asks only, changes nothing."""
    results = [
        _check("task role", lambda: _role(aws, state.outputs["TaskRoleArn"])),
        _check("execution role", lambda: _role(aws, state.outputs["ExecutionRoleArn"])),
        _check("image", lambda: _image(aws, state.outputs["ImageRepository"], image)),
    ]
    results += [_check(f"quota {pool}", partial(_quota, aws, code)) for pool, code in QUOTAS.items()]
    if prefect_api_url is not None:
        results.append(_reachable(prefect_api_url))
    return results


def _check(name: str, ask: Callable[[], tuple[bool | None, str]]) -> Check:
    from botocore.exceptions import BotoCoreError, ClientError

    try:
        ok, message = ask()
    except (BotoCoreError, ClientError) as error:
        return Check(name, None, f"could not be checked: {error}")
    return Check(name, ok, message)


def _role(aws: Aws, arn: str) -> tuple[bool | None, str]:
    iam = aws.client("iam")
    name = arn.rsplit("/", 1)[-1]
    try:
        iam.get_role(RoleName=name)
    except iam.exceptions.NoSuchEntityException:
        return False, f"{name} is gone: run `crucible aws down` and `up`, or restore it by hand"
    return True, name


def newest_image(aws: Aws, repository: str) -> str | None:
    """Address of the image pushed last to an ECR repository of ours, None if there is none. Raises `AwsError`."""
    with aws_errors("Looking for an image", aws.region):
        pages = aws.client("ecr").get_paginator("describe_images").paginate(repositoryName=repository.split("/", 1)[1])
        images = [image for page in pages for image in page["imageDetails"] if image.get("imageTags")]
    if not images:
        return None
    return f"{repository}:{max(images, key=lambda image: image['imagePushedAt'])['imageTags'][0]}"


def _image(aws: Aws, repository: str, image: str | None) -> tuple[bool | None, str]:
    if image is None:
        image = newest_image(aws, repository)
        if image is None:
            return False, f"{repository} holds no image yet: push one with `crucible images push`"
        return True, image
    if not image.startswith(repository):
        return None, f"{image} is not in this stack's repository, so nobody looked whether it exists"
    ecr = aws.client("ecr")
    tagged, _, digest = image.split("/", 1)[1].partition("@")
    name, _, tag = tagged.partition(":")
    wanted = {"imageDigest": digest} if digest else {"imageTag": tag or "latest"}
    try:
        ecr.describe_images(repositoryName=name, imageIds=[wanted])
    except ecr.exceptions.ImageNotFoundException:
        return False, f"{image} does not exist: push it with `crucible images push`, or name another with --image"
    return True, image


def _quota(aws: Aws, code: str) -> tuple[bool | None, str]:
    quotas = aws.client("service-quotas")
    try:
        value = quotas.get_service_quota(ServiceCode="ec2", QuotaCode=code)["Quota"]["Value"]
    except quotas.exceptions.NoSuchResourceException:
        return None, f"quota {code} is not known in {aws.region}"
    if value < 4:
        return False, f"{value:.0f} vCPUs, one xlarge needs 4: ask for more in Service Quotas, EC2, quota {code}"
    return True, f"{value:.0f} vCPUs"


def _reachable(url: str) -> Check:
    host = urlsplit(url).hostname or ""
    if host in ("localhost", "127.0.0.1", "0.0.0.0", "::1"):
        text = f"{url} means the instance itself there: give the server an address that EC2 can reach (docs/aws.md)"
        return Check("Prefect API", False, text)
    return Check("Prefect API", None, f"{url}: reachable from here; from EC2 the first run will tell")
