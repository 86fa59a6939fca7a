# ruff: noqa: E501 - messages as AWS writes them
"""What AWS's real messages are taken for."""

from __future__ import annotations

import pytest

from crucible.pools.aws.diagnosis import diagnose

PULL = "CannotPullContainerError: pull image manifest has been retried 5 time(s): "
ECR = "123456789012.dkr.ecr.us-east-1.amazonaws.com"
RUN_TASK = "when calling the RunTask operation: "

TEMPORARY = {
    f"{PULL}failed to copy: httpReadSeeker: failed open: unexpected status code https://registry-1.docker.io/v2/a/b/"
    "manifests/sha256:50: 429 Too Many Requests - Server message: toomanyrequests: You have reached your pull rate "
    "limit.": "registry did not deliver",
    f"{PULL}failed to resolve ref {ECR}/crucible:503: unexpected status from HEAD request to https://{ECR}/v2/crucible/"
    "manifests/503: 500 Internal Server Error": "registry did not deliver",
    "CannotPullContainerError: Error response from daemon: received unexpected HTTP status: 502 Bad Gateway": "deliver",
    f"{PULL}received unexpected HTTP status: 503 Service Unavailable": "registry did not deliver",
    f"{PULL}unexpected status code https://ghcr.io/v2/: 504": "registry did not deliver",
    f'{PULL}failed to do request: Head "https://{ECR}/v2/": dial tcp 52.94.1.1:443: i/o timeout': "did not deliver",
    'CannotPullContainerError: Error response from daemon: Get "https://x/v2/": net/http: TLS handshake timeout': "deli",
    f"{PULL}something that nobody has seen": "could not be pulled",
    f"An error occurred (ThrottlingException) {RUN_TASK}Rate exceeded": "try again later",
    f"An error occurred (ServerException) {RUN_TASK}Service Unavailable. Please try again later.": "try again later",
    "Could not launch Spot Instances. UnfulfillableCapacity - Unable to fulfill capacity due to your request "
    "configuration.": "no such instance free",
    f"An error occurred (InvalidParameterException) {RUN_TASK}No Container Instances were found in your cluster.": "free",
    "TaskFailedToStart: RESOURCE:GPU": "no machine with enough",
    "Host EC2 (instance i-0123456789abcdef0) terminated.": "its machine was taken away",
    "Essential container in task exited: bloom-560m": "AWS says",
    "Essential container in task exited: zoom/room-503": "AWS says",
    "SpotInterruption: Your Spot Task was interrupted.": "AWS says",
}
PERMANENT = {
    f"{PULL}failed to resolve ref {ECR}/crucible:nowhere: {ECR}/crucible:nowhere: not found": "image does not exist",
    "CannotPullContainerError: Error response from daemon: manifest for x/bloom-560m:nope not found: manifest unknown: "
    "Requested image not found": "image does not exist",
    f"CannotPullContainerError: Error response from daemon: Head {ECR}/v2/x: no basic auth credentials": "not be pulled",
    f"{PULL}failed to resolve ref docker.io/team/oom:1: pull access denied, may require authorization: server message: "
    "insufficient_scope: authorization failed": "could not be pulled",
    "CannotPullContainerError: image Manifest does not contain descriptor matching platform 'linux/amd64'": "processor",
    "ResourceInitializationError: unable to pull secrets or registry auth: execution resource retrieval failed: unable "
    "to retrieve secret from asm: ResourceNotFoundException: Secrets Manager can't find the specified secret.": "secret",
    "ECS was unable to assume the role 'arn:aws:iam::1:role/x' that was provided for this task.": "a role of the task",
    f"An error occurred (ClientException) {RUN_TASK}ECS was unable to assume the role 'arn:aws:iam::1:role/x'": "a role",
    "VcpuLimitExceeded: You have requested more vCPU capacity than your current vCPU limit of 0 allows": "quota",
    f"An error occurred (ExpiredTokenException) {RUN_TASK}The security token included in the request is expired": "exp",
    f"An error occurred (AccessDeniedException) {RUN_TASK}User: x is not authorized to perform: ecs:RunTask": "refused",
    f"An error occurred (ClusterNotFoundException) {RUN_TASK}Cluster not found.": "cluster does not exist",
    "OutOfMemoryError: Container killed due to memory usage": "ran out of memory",
    f"An error occurred (InvalidParameterException) {RUN_TASK}Container Overrides length must be at most 8192": "refused",
    f"An error occurred (ClientException) {RUN_TASK}Tags can not be more than 50.": "ECS refused the request",
    "An error occurred (ValidationException) when calling the RegisterTaskDefinition operation: bad family": "refused",
    "Failed to submit flow run to infrastructure: ConfigError: stop_timeout = 300: ECS allows at most 120": "configured",
}


@pytest.mark.parametrize(("message", "summary"), TEMPORARY.items())
def test_what_passes_is_tried_again(message: str, summary: str) -> None:
    found = diagnose(message)
    assert not found.permanent, found
    assert summary in found.summary


@pytest.mark.parametrize(("message", "summary"), PERMANENT.items())
def test_what_cannot_help_is_not_tried_again(message: str, summary: str) -> None:
    found = diagnose(message)
    assert found.permanent, found
    assert summary in found.summary
    assert found.fix
