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
import time
import urllib.error
import urllib.request
from datetime import datetime
from typing import Any

from crucible.agent.notices import Notice

DEFAULT_ENDPOINT = "http://169.254.169.254"
TOKEN_TTL_SECONDS = 21600  # the longest IMDS allows
REQUEST_TIMEOUT_SECONDS = 0.9  # the service is on the host: an answer takes milliseconds, or there is none
OFF_EC2_RETRY_SECONDS = 60.0  # a machine that never answers is most likely not on EC2

# Neither proxies nor redirects belong between an instance and its own metadata.
_direct = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Ec2MetadataNotices:
    """Watches one instance's metadata service for a reclaim.

    `interval_seconds` is how often the service is asked (AWS advises every 5 s); `poll` may be called more often and
    then repeats what is known. A notice stands until the machine goes: every later `poll` returns it again, an equal
    object, and a reclaim replaces a rebalance warning.
    """

    def __init__(self, endpoint: str | None = None, *, interval_seconds: float = 3.0) -> None:
        if not 0 < interval_seconds <= 60:
            raise ValueError(f"interval_seconds = {interval_seconds}: the notice is 120 s long, use 2 to 5")
        found = endpoint or os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or DEFAULT_ENDPOINT
        self.endpoint = found.rstrip("/")
        self.interval_seconds = interval_seconds
        self._disabled = os.environ.get("AWS_EC2_METADATA_DISABLED", "").lower() == "true"
        self._token = ""
        self._answered = False
        self._retry_seconds = interval_seconds
        self._next_look = 0.0
        self._standing: Notice | None = None

    def poll(self) -> Notice | None:
        """The notice that stands now, or None. Raises nothing and returns within about 2 s."""
        now = time.monotonic()
        if self._disabled or now < self._next_look:
            return self._standing
        try:
            self._standing = self._look() or self._standing
            self._next_look = now + self.interval_seconds
        except (OSError, ValueError):  # unreachable, or an answer that is no answer: ask again at the next turn
            if not self._answered:  # or a machine so busy with its start that nothing answers in time
                self._retry_seconds = min(2 * self._retry_seconds, OFF_EC2_RETRY_SECONDS)
            self._next_look = now + (self.interval_seconds if self._answered else self._retry_seconds)
        return self._standing

    def instance_identity(self) -> dict[str, Any] | None:
        """`instance_id`, `instance_type`, `zone`, `region`, `image_id`, `lifecycle` ("spot", "on-demand" or
        "scheduled"); None when this is no EC2 instance (known within a second)."""
        if self._disabled:
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

    def _look(self) -> Notice | None:
        if body := self._get("latest/meta-data/spot/instance-action"):
            action = json.loads(body)
            reason = f"EC2 will {action.get('action', 'reclaim')} this spot instance at {action.get('time', 'once')}"
            return Notice(source="ec2-spot", reason=reason, deadline=_unix(action.get("time")), stop=True)
        if self._standing is None and self._get("latest/meta-data/events/recommendations/rebalance"):
            reason = "EC2 sees a raised risk that this spot instance will be reclaimed (rebalance recommendation)"
            return Notice(source="ec2-rebalance", reason=reason, deadline=None, stop=False)
        return None

    def _get(self, path: str) -> str | None:
        """The text at `path`, None for 404. A refused token is replaced once; raises OSError if nobody answers."""
        for fresh_token in (False, True):
            if fresh_token or not self._token:
                headers = {"X-aws-ec2-metadata-token-ttl-seconds": str(TOKEN_TTL_SECONDS)}
                self._token = self._request("PUT", "latest/api/token", headers)
            try:
                return self._request("GET", path, {"X-aws-ec2-metadata-token": self._token})
            except urllib.error.HTTPError as error:
                if error.code == 404:
                    return None
                if error.code != 401 or fresh_token:
                    raise
        return None

    def _request(self, method: str, path: str, headers: dict[str, str]) -> str:
        request = urllib.request.Request(f"{self.endpoint}/{path}", method=method, headers=headers)
        with _direct.open(request, timeout=REQUEST_TIMEOUT_SECONDS) as response:
            text = response.read(65536).decode()
        self._answered = True
        return str(text)


def _unix(timestamp: str | None) -> float | None:
    """Unix seconds of an IMDS time such as `2026-11-22T13:48:00Z`; None if there is none to be read."""
    try:
        return datetime.fromisoformat((timestamp or "").replace("Z", "+00:00")).timestamp()
    except ValueError:
        return None
