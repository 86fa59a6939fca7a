"""Pushing an image to a registry: any that `docker login` knows, or the AWS stack's on ECR."""

from __future__ import annotations

import base64
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from crucible.errors import ServiceError
from crucible.pools.docker.engine import connect
from crucible.pools.docker.images import Recipe

_ECR = re.compile(r"\d{12}\.dkr\.ecr\.(?P<region>[a-z0-9-]+)\.amazonaws\.com(\.cn)?/")
_SAY_EVERY = 0.1


@dataclass(frozen=True)
class Login:
    """What a registry wants to know."""

    username: str
    password: str = field(repr=False)


def is_ecr(repository: str) -> bool:
    """Whether the repository is on Amazon's registry, which wants a login of its own."""
    return _ECR.match(repository) is not None


def ecr_login(repository: str, profile: str | None = None) -> Login:
    """A login for twelve hours, from AWS. Raises `AwsError` when there are no credentials or they are refused."""
    from crucible.pools.aws.session import connect as connect_aws

    match = _ECR.match(repository)
    assert match is not None
    aws = connect_aws(match["region"], profile)
    data = aws.client("ecr").get_authorization_token()["authorizationData"][0]
    username, _, password = base64.b64decode(data["authorizationToken"]).decode().partition(":")
    return Login(username, password)


def stack_repository(stack_name: str, region: str | None, profile: str | None) -> str:
    """The image repository of the AWS stack. Raises `AwsError` when there is no such stack."""
    from crucible.pools.aws import stack
    from crucible.pools.aws.session import connect as connect_aws

    return stack.require(connect_aws(region, profile), stack_name).outputs["ImageRepository"]


def push(recipe: Recipe, repository: str, login: Login | None, on_line: Callable[[str], None]) -> str:
    """Push the recipe's image, which this engine must have, and return its reference by digest.

    `repository` is registry and name, without a tag. Raises `ServiceError` with the registry's message.
    """
    from docker.errors import APIError

    client = connect(timeout=600)
    try:
        image = client.images.get(recipe.reference)
        image.tag(repository, recipe.tag)
        credentials = {"username": login.username, "password": login.password} if login else None
        progress = _Progress(on_line)
        for line in client.images.push(repository, recipe.tag, stream=True, decode=True, auth_config=credentials):
            progress(line)
    except APIError as error:
        raise ServiceError(f"{repository}:{recipe.tag} was not pushed: {error.explanation}") from error
    finally:
        client.close()
    on_line(f"{repository}:{recipe.tag} is {progress.digest}")
    return f"{repository}@{progress.digest}"


class _Progress:
    """Turns the engine's lines into one every tenth of what is to be pushed; remembers the digest."""

    def __init__(self, on_line: Callable[[str], None]) -> None:
        self._on_line = on_line
        self._layers: dict[str, tuple[int, int]] = {}
        self._told = 0.0
        self.digest = ""

    def __call__(self, line: dict[str, Any]) -> None:
        if "error" in line:
            raise ServiceError(f"the image was not pushed: {line['error']}")
        self.digest = (line.get("aux") or {}).get("Digest") or self.digest
        progress = line.get("progressDetail") or {}
        if "current" not in progress or "total" not in progress:
            return
        self._layers[line["id"]] = (min(progress["current"], progress["total"]), progress["total"])
        done, total = (sum(values) for values in zip(*self._layers.values(), strict=True))
        if done / total >= self._told + _SAY_EVERY or (done == total and self._told < 1):
            self._told = done / total
            self._on_line(f"{done / 1e6:.0f} of {total / 1e6:.0f} MB")
