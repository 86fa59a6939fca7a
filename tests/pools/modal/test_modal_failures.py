# ruff: noqa: E501 - messages as Modal and its builds write them
"""What Modal's errors are taken for: a passing fault is tried again, a permanent one waits for a person."""

from __future__ import annotations

import pytest
from grpclib import GRPCError, Status
from modal import exception as errors

from crucible.pools.modal.failures import PERMANENT
from crucible.pools.modal.sandboxes import explained, failure_behind

BUILD = "Image build for im-4Nq0TpUVWgTA1FoHvFDPZt failed with the exception:\n"
PASSING: list[tuple[Exception, str]] = [
    (
        errors.ImageBuildError("Image build for im-1 terminated due to external shut-down. Please try again.", "im-1"),
        "ImageBuildInterrupted",
    ),
    (
        errors.ImageBuildError(f"{BUILD}toomanyrequests: You have reached your pull rate limit.", "im-1"),
        "ImageBuildInterrupted",
    ),
    (
        errors.ImageBuildError(
            f"{BUILD}unexpected status code https://registry-1.docker.io/v2/: 503 Service Unavailable", "im-1"
        ),
        "ImageBuildInterrupted",
    ),
    (
        errors.ImageBuildError(f"{BUILD}Get https://ghcr.io/v2/: net/http: TLS handshake timeout", "im-1"),
        "ImageBuildInterrupted",
    ),
    (
        errors.ImageBuildError(f"{BUILD}pip: HTTPSConnectionPool(host='pypi.org', port=443): Read timed out.", "im-1"),
        "ImageBuildInterrupted",
    ),
    (errors.ResourceExhaustedError("Sandbox creation rate limit exceeded"), "NoCapacity"),
    (errors.ResourceExhaustedError("Timed out waiting for a worker with 8x H100"), "NoCapacity"),
    (errors.ConnectionError("Could not connect to the Modal server."), "ModalUnreachable"),
    (errors.ServiceError("Service unavailable"), "ModalUnreachable"),
    (errors.InternalError("Internal error (incident id 4f3a)"), "ModalUnreachable"),
    (errors.InternalFailure("Runner failed to start the container"), "ModalUnreachable"),
    (errors.MountUploadTimeoutError("Mounting of /x timed out"), "ModalUnreachable"),
    (errors.ClientClosed("140213"), "ModalUnreachable"),
    (GRPCError(Status.UNAVAILABLE, "upstream connect error"), "ModalUnreachable"),
    (GRPCError(Status.RESOURCE_EXHAUSTED, "rate limited"), "NoCapacity"),
]
LASTING: list[tuple[Exception, str]] = [
    (errors.AuthError("Token missing. Could not authenticate client."), "TokenRefused"),
    (GRPCError(Status.UNAUTHENTICATED, "Token ID is malformed"), "TokenRefused"),
    (
        errors.ResourceExhaustedError("Function call failed: workspace billing cycle spend limit reached"),
        "RequestRefused",
    ),
    (GRPCError(Status.RESOURCE_EXHAUSTED, "workspace billing cycle spend limit reached"), "RequestRefused"),
    (
        errors.ImageBuildError(
            "Image build for im-1 terminated due to external shut-down with the exception:\nworkspace billing cycle spend limit reached",
            "im-1",
        ),
        "RequestRefused",
    ),
    (
        errors.ImageBuildError(f"{BUILD}manifest for team/bloom-560m:503 not found: manifest unknown", "im-1"),
        "ImageBuildFailed",
    ),
    (
        errors.ImageBuildError(f"{BUILD}pull access denied for team/timeout-502, may require authorization", "im-1"),
        "ImageBuildFailed",
    ),
    (
        errors.ImageBuildError(
            "Image build for im-429 failed.\nView the build logs:\n  modal image logs im-429", "im-429"
        ),
        "ImageBuildFailed",
    ),
    (
        errors.ImageBuildError(
            "Image build for im-1 timed out. Please try again with a larger `timeout` parameter.", "im-1"
        ),
        "ImageBuildFailed",
    ),
    (errors.InvalidError("Unknown GPU type: 'H1000'"), "RequestRefused"),
    (errors.NotFoundError("Secret 'spend-limit' not found in environment 'main'"), "RequestRefused"),
    (errors.PermissionDeniedError("You do not have access to environment 'unavailable-503'"), "RequestRefused"),
    (errors.VersionError("The client version 0.60 is too old."), "RequestRefused"),
]


@pytest.mark.parametrize(("error", "state"), [*PASSING, *LASTING], ids=lambda value: str(value)[:60])
def test_each_error_is_the_failure_it_is(error: Exception, state: str) -> None:
    found = failure_behind(error)  # type: ignore[arg-type]
    assert found.state_name == state
    assert (state in PERMANENT) == any(error is one for one, _ in LASTING)
    words = str(error.message if isinstance(error, GRPCError) and not isinstance(error, errors.Error) else error)
    assert words.splitlines()[0] in str(found)


def test_nothing_of_the_sdk_gets_out() -> None:
    with pytest.raises(Exception, match="does not answer") as caught, explained():
        raise errors.ServiceError("away")
    assert caught.type.__module__.startswith("crucible.")
