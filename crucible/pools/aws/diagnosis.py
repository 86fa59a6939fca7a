"""What messages of ECS and the scaling groups mean for a job, and what to do.

    diagnose("CannotPullContainerError: … not found").permanent   # True: trying again cannot help

The patterns follow AWS's own messages, as its user guides and bug reports give them (ECS "Stopped tasks error codes",
EC2 Auto Scaling "Troubleshoot"); `tests/pools/aws/test_diagnosis.py` has the messages. A text that no rule knows is
passed on as it is and counts as temporary.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from crucible.pools.common.registry_faults import PASSING


@dataclass(frozen=True)
class Diagnosis:
    """A failure as summary, detail and what to do."""

    summary: str
    detail: str
    fix: str
    permanent: bool = False
    """Trying the same again cannot help: a supervisor stops, or moves to another pool."""

    def __str__(self) -> str:
        return f"{self.summary}: {self.fix} ({self.detail})" if self.fix else f"{self.summary} ({self.detail})"


_PULL = r"CannotPull(ECR)?Container(Error)?\b.*?"

_RULES: list[tuple[str, str, str, bool]] = [
    (r"\bConfigError: ", "the run cannot start as it is configured", "change what the message names", True),
    (
        _PULL + PASSING,
        "the registry did not deliver the image",
        "nothing, if it passes by itself; for a pull rate limit, use an image in ECR (`crucible images push`)",
        False,
    ),
    (
        _PULL + r"(not found|does not exist|manifest unknown|NotFound)",
        "the container image does not exist",
        "push it (`crucible images push`) or name another with `crucible aws pools --image`",
        True,
    ),
    (
        _PULL + r"descriptor matching platform",
        "the container image is for another kind of processor",
        "build it for the machines of the pool (`crucible images build`)",
        True,
    ),
    (
        _PULL + r"(denied|no basic auth|unauthorized|authorization|invalid reference|no such host)|pull access denied",
        "the container image could not be pulled",
        "check that the image is in this region and that the execution role may pull it",
        True,
    ),
    (_PULL, "the container image could not be pulled", "see the message; it is tried again", False),
    (
        r"can't find the specified secret|unable to retrieve secret.*ResourceNotFoundException",
        "a secret of the task does not exist",
        "create it in AWS Secrets Manager, or name another: crucible aws up --set PrefectAuthSecretArn=ARN",
        True,
    ),
    (
        r"ThrottlingException|Throttling: |Rate exceeded|RequestLimitExceeded|\(ServerException\)|\(ServiceUnavailable",
        "AWS asks to try again later",
        "",
        False,
    ),
    (
        r"unable to assume (the )?role|\brole\b[^;]{0,200}?(is not valid|cannot be found|does not exist)",
        "a role of the task is missing or cannot be assumed",
        "run `crucible aws up` to restore the stack's roles, then `crucible aws pools`",
        True,
    ),
    (
        r"VcpuLimitExceeded|MaxSpotInstanceCountExceeded|vCPU limit|spot instance count exceeded",
        "the account's quota for GPU instances is used up or zero",
        "ask AWS for more in Service Quotas: EC2, 'All G and VT Spot Instance Requests' or 'Running On-Demand G and VT "
        "instances' (counted in vCPUs: 4 for one xlarge)",
        True,
    ),
    (
        r"UnfulfillableCapacity|InsufficientInstanceCapacity|no Spot capacity|insufficient [^;]{0,80}capacity"
        r"|No Container Instances were found",
        "AWS has no such instance free in these zones now",
        "wait, allow more instance types (`crucible aws up --types …`), or use ec2-on-demand or another region",
        False,
    ),
    (
        r"RESOURCE:(GPU|CPU|MEMORY)",
        "no machine with enough of that resource came up in time",
        "see `crucible aws status` for why none was launched: quota, capacity, or the group's maximum; and check that "
        "the task fits the smallest allowed type",
        False,
    ),
    (
        r"Host EC2 \(instance (?P<instance>i-[0-9a-f]+)\) (stopped|terminated)",
        "its machine was taken away",
        "",
        False,
    ),
    (
        r"ExpiredToken|security token.*expired",
        "AWS credentials have expired",
        "log in again and restart the worker",
        True,
    ),
    (
        r"AccessDenied|not authorized to perform",
        "AWS refused an action",
        "give the caller that permission, or run the worker with the stack's WorkerRole",
        True,
    ),
    (
        r"ClusterNotFound|cluster [^;]{0,200} not found",
        "the ECS cluster does not exist in this region",
        "check AWS_REGION of the worker, or run `crucible aws up` and `crucible aws pools`",
        True,
    ),
    (
        r"OutOfMemory(Error)?\b|\bOOM-?killed\b|killed due to memory usage",
        "the container ran out of memory",
        "raise the pool's memory, or lower batch_size",
        True,
    ),
    (
        r"\((InvalidParameter(Exception|Value)|ClientException|ValidationException|UnsupportedFeatureException"
        r"|BlockedException)\)|network configuration error|task definition is inactive|Overrides length must be",
        "ECS refused the request",
        "change what the message names, in the run's job variables or the pool (`crucible aws pools`)",
        True,
    ),
]


def diagnose(text: str) -> Diagnosis:
    """What a message of ECS, EC2 or the worker means."""
    for pattern, summary, fix, permanent in _RULES:
        if re.search(pattern, text, re.IGNORECASE | re.DOTALL):
            return Diagnosis(summary, text.strip(), fix, permanent)
    return Diagnosis("AWS says", text.strip(), "")


def of_task(task: Mapping[str, Any]) -> Diagnosis | None:
    """Why a stopped task (as DescribeTasks or its event describes it) ended; None if it runs or ended well."""
    if task.get("lastStatus") != "STOPPED":
        return None
    containers = task.get("containers") or []
    reasons = [task.get("stoppedReason") or "", *(container.get("reason") or "" for container in containers)]
    codes = [container.get("exitCode") for container in containers]
    text = "; ".join(dict.fromkeys(reason for reason in reasons if reason))
    if lost_machine(task):
        return diagnose(text)
    if codes and all(code == 0 for code in codes):
        return None
    if 137 in codes and "memory" in text.lower():
        return diagnose(f"OutOfMemory: {text}")
    exits = f" with exit code {', '.join(str(c) for c in codes if c)}" if any(codes) else ""
    return diagnose(f"{task.get('stopCode', 'stopped')}{exits}: {text}")


def lost_machine(task: Mapping[str, Any]) -> bool:
    """Whether a stopped task died with its machine: then there is no exit code, whatever its stop code says."""
    return task.get("stopCode") in ("SpotInterruption", "TerminationNotice") or bool(
        re.match(r"Host EC2 \(instance i-[0-9a-f]+\) (stopped|terminated)", task.get("stoppedReason") or "")
    )
