"""Notices and identity of an EC2 instance, from its metadata service (IMDSv2).

A spot reclaim is announced two minutes ahead at `spot/instance-action`, and nowhere else that a task on ECS can see:
ECS drains *services*, so a standalone task (which is what Prefect's ECS worker starts) gets no signal until the host
is already shutting down. A rebalance recommendation may come earlier; it is a warning, not a date.

    notices = Ec2MetadataNotices()
    notices.instance_identity()   # {"instance_id": "i-0abc…", "instance_type": "g5.xlarge", …} or None off EC2
    notices.poll()                # None, or the notice that stands

The endpoint is boto3's own setting, `AWS_EC2_METADATA_SERVICE_ENDPOINT`; `AWS_EC2_METADATA_DISABLED=true` is obeyed.
Source: AWS, "Spot Instance interruption notices" and "Use the Instance Metadata Service" (EC2 user guide).
"""

from __future__ import annotations

import json
import os
import urllib.error
from datetime import datetime
from typing import Any

from crucible.agent.notices import Notice
from crucible.agent.notices_metadata import MetadataNotices

DEFAULT_ENDPOINT = "http://169.254.169.254"
TOKEN_TTL_SECONDS = 21600  # the longest IMDS allows


class Ec2MetadataNotices(MetadataNotices):
    """Watches one instance's metadata service for a reclaim; AWS advises to ask every 5 s. A reclaim replaces a
    rebalance warning."""

    def __init__(self, endpoint: str | None = None, *, interval_seconds: float = 3.0) -> None:
        found = endpoint or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or DEFAULT_ENDPOINT
        super().__init__(found, interval_seconds=interval_seconds)
        self.disabled = os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
        self._token = ""

    def instance_identity(self) -> dict[str, Any] | None:
        """`instance_id`, `instance_type`, `zone`, `region`, `image_id`, `lifecycle` ("spot", "on-demand" or
        "scheduled"); None when this is no EC2 instance (known within a second)."""
        if self.disabled:
            return None
        try:
            document = json.loads(self._get("latest/dynamic/instance-identity/document") or "{}")
            if not document:
                return None
            return {
                "instance_id": document.get("instanceId"),
                "instance_type": document.get("instanceType"),
                "zone": document.get("availabilityZone"),
                "region": document.get("region"),
                "image_id": document.get("imageId"),
                "lifecycle": self._get("latest/meta-data/instance-life-cycle"),
            }
        except (OSError, ValueError):
            return None

    def look(self) -> Notice | None:
        if body := self._get("latest/meta-data/spot/instance-action"):
            action = json.loads(body)
            reason = f"EC2 will {action.get('action', 'reclaim')} this spot instance at {action.get('time', 'once')}"
            return Notice(source="ec2-spot", reason=reason, deadline=_unix(action.get("time")), stop=True)
        if self.standing is None and self._get("latest/meta-data/events/recommendations/rebalance"):
            reason = "EC2 sees a raised risk that this spot instance will be reclaimed (rebalance recommendation)"
            return Notice(source="ec2-rebalance", reason=reason, deadline=None, stop=False)
        return None

    def _get(self, path: str) -> str | None:
        """The text at `path`, None for 404. A refused token is replaced once; raises OSError if nobody answers."""
        for fresh_token in (False, True):
            if fresh_token or not self._token:
                headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_SECONDS)}
                self._token = self.request("PUT", "latest/api/token", headers)
            try:
                return self.request("GET", path, {"X-aws-ec2-metadata-token": self._token})
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401 or fresh_token:
                    raise
        return None


def _unix(timestamp: str | None) -> float | None:
    """Unix seconds of an IMDS time such as `2026-11-22T13:48:00Z`; None if there is none to be read."""
    try:
        return datetime.fromisoformat((timestamp or "").replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
