"""The EC2 instance metadata service (IMDSv2) of every rehearsed instance, on one local port.

An instance's endpoint is `http://127.0.0.1:PORT/i-0abc…`: boto3 and `crucible.agent.notices_ec2` keep the path of
`AWS_EC2_METADATA_SERVICE_ENDPOINT`, so one server stands for all hosts. Tokens are required, as on our launch template,
and belong to one instance; 404 at `spot/instance-action` means that nothing is planned.
Source: AWS EC2 user guide, "Use the Instance Metadata Service" and "Instance metadata categories".
"""

from __future__ import annotations

import json
import secrets
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

TOKEN_TTL_HEADER = "X-aws-ec2-metadata-token-ttl-seconds"
TOKEN_HEADER = "X-aws-ec2-metadata-token"
MAX_TTL_SECONDS = 21600


class MetadataService:
    """Serves `latest/api/token`, `latest/meta-data/*` and `latest/dynamic/instance-identity/document`."""

    def __init__(self, host: str = "127.0.0.1", port: int = 0) -> None:
        self._paths: dict[str, dict[str, str]] = {}  # instance id -> path below latest/ -> text
        self._tokens: dict[tuple[str, str], float] = {}  # (instance id, token) -> monotonic time of expiry
        self._server = ThreadingHTTPServer((host, port), self._handler())
        self._server.daemon_threads = True
        self._server.block_on_close = False  # clients may keep their connections open
        self.url = f"http://{host}:{self._server.server_address[1]}"
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True, name="instance-metadata").start()

    def endpoint(self, instance_id: str) -> str:
        """What `AWS_EC2_METADATA_SERVICE_ENDPOINT` must be on that instance."""
        return f"{self.url}/{instance_id}"

    def add_instance(
        self, instance_id: str, *, instance_type: str, zone: str, lifecycle: str, image_id: str = "ami-rehearsal"
    ) -> None:
        """Serve one instance; `lifecycle` is "spot" or "on-demand"."""
        document = {
            "instanceId": instance_id,
            "instanceType": instance_type,
            "availabilityZone": zone,
            "region": zone[:-1],
            "imageId": image_id,
        }
        self._paths[instance_id] = {
            "dynamic/instance-identity/document": json.dumps(document),
            "meta-data/instance-id": instance_id,
            "meta-data/instance-type": instance_type,
            "meta-data/instance-life-cycle": lifecycle,
            "meta-data/placement/availability-zone": zone,
            "meta-data/placement/region": zone[:-1],
        }

    def remove_instance(self, instance_id: str) -> None:
        """The host is gone: its endpoint answers 404 to everything."""
        self._paths.pop(instance_id, None)

    def announce_reclaim(self, instance_id: str, at: float, action: str = "terminate") -> None:
        """Give the spot notice: the instance goes at unix time `at`."""
        when = _iso(at)
        self._paths[instance_id]["meta-data/spot/instance-action"] = json.dumps({"action": action, "time": when})
        self._paths[instance_id]["meta-data/spot/termination-time"] = when

    def recommend_rebalance(self, instance_id: str) -> None:
        """Warn of a raised risk, without a date."""
        body = json.dumps({"noticeTime": _iso(time.time())})
        self._paths[instance_id]["meta-data/events/recommendations/rebalance"] = body

    def expire_tokens(self) -> None:
        """Every token given out so far is refused (401) from now on."""
        self._tokens.clear()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _issue_token(self, instance_id: str, ttl: str) -> str | None:
        if instance_id not in self._paths or not ttl.isdigit() or not 1 <= int(ttl) <= MAX_TTL_SECONDS:
            return None
        token = secrets.token_urlsafe(32)
        self._tokens[instance_id, token] = time.monotonic() + int(ttl)
        return token

    def _token_is_good(self, instance_id: str, token: str) -> bool:
        return self._tokens.get((instance_id, token), 0.0) > time.monotonic()

    def _handler(service) -> type[BaseHTTPRequestHandler]:  # noqa: N805 - `self` is the request handler below
        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self) -> None:
                instance_id, path = self._split()
                if path != "api/token":
                    return self._answer(404)
                token = service._issue_token(instance_id, self.headers.get(TOKEN_TTL_HEADER, ""))
                return self._answer(400) if token is None else self._answer(200, token)

            def do_GET(self) -> None:
                instance_id, path = self._split()
                if not service._token_is_good(instance_id, self.headers.get(TOKEN_HEADER, "")):
                    return self._answer(401)
                body = service._paths.get(instance_id, {}).get(path)
                return self._answer(404) if body is None else self._answer(200, body)

            def _split(self) -> tuple[str, str]:
                """(instance id, path below `latest/`)"""
                instance_id, _, rest = self.path.partition("?")[0].lstrip("/").partition("/")
                return instance_id, rest.removeprefix("latest/").rstrip("/")

            def _answer(self, code: int, body: str = "") -> None:
                raw = body.encode()
                self.send_response(code)
                self.send_header("Content-Type", "text/plain")
                self.send_header("Content-Length", str(len(raw)))
                self.end_headers()
                self.wfile.write(raw)

            def log_message(self, format: str, *args: Any) -> None:
                """Silent: a poll every few seconds is no news."""

        return Handler


def _iso(unix_seconds: float) -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(unix_seconds))
