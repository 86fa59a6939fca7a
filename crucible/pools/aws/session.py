"""Who we are at AWS, and where: a checked boto3 session."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Any

from crucible.errors import ConfigError
from crucible.pools.aws.errors import AwsError, aws_errors


@dataclass(frozen=True)
class Aws:
    """A session whose credentials answered, in a region that exists."""

    session: Any
    """boto3.Session"""
    region: str
    account: str
    caller: str
    """ARN of the user or role."""
    endpoint_url: str | None = None
    """Another address than AWS's own, for every service."""

    def client(self, service: str) -> Any:
        """A boto3 client in this region."""
        return self.session.client(service, endpoint_url=self.endpoint_url)


def connect(region: str | None = None, profile: str | None = None) -> Aws:
    """Open a session and ask AWS who we are. Raises `AwsError` naming what is missing: login, region, network."""
    try:
        import boto3
    except ImportError as error:
        raise ConfigError("the AWS pools need boto3: pip install 'crucible[aws]'") from error

    # The AWS CLI reads AWS_REGION, boto3 only AWS_DEFAULT_REGION.
    with aws_errors("Opening an AWS session"):
        session = boto3.Session(profile_name=profile, region_name=region or os.environ.get("AWS_REGION") or None)
    if session.region_name is None:
        raise AwsError(
            "Opening an AWS session: no region given: add --region us-east-1 (or another), or set AWS_REGION"
        )
    known = session.get_available_regions("ecs")
    if session.region_name not in known:
        import difflib

        near = difflib.get_close_matches(session.region_name, known, n=1)
        hint = f", did you mean {near[0]}?" if near else f"; regions with ECS: {', '.join(sorted(known))}"
        raise AwsError(f"region = {session.region_name!r}: AWS has no such region{hint}")
    with aws_errors("Reading the AWS identity", session.region_name):
        identity = session.client("sts").get_caller_identity()
    return Aws(session, session.region_name, identity["Account"], identity["Arn"])
