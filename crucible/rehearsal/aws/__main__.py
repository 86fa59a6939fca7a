"""The process that plays AWS: `python -m crucible.rehearsal.aws '{"folder": …, "working_directory": …}'`.

Prints one JSON line with its addresses when it is up, answers on its control port, and ends with everything it started
when its standard input is closed: a rehearsal cannot outlive whoever wanted it.
"""

from __future__ import annotations

import json
import os
import secrets
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from crucible.rehearsal.aws.cloud import Cloud
from crucible.rehearsal.aws.faults import FAULTS, NoTargetError
from crucible.rehearsal.aws.settings import Settings


def control_server(cloud: Cloud, secret: str) -> ThreadingHTTPServer:
    """`GET /SECRET/state`, `GET /SECRET/timeline`, `POST /SECRET/faults/NAME` with JSON arguments.

    Neither other users of this machine nor web pages know the secret.
    """

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            path = self._path()
            if path == "state":
                self._answer(200, cloud.within(cloud.state))
            elif path == "timeline":
                self._answer(200, list(cloud.timeline))
            elif path is not None:
                self._answer(404, {"error": f"nothing at {path}"})

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            path = self._path()
            if path is None:
                return
            arguments = json.loads(body or b"{}")
            fault = FAULTS.get(path.removeprefix("faults/"))
            if fault is None:
                self._answer(404, {"error": f"no fault {path}; there are: {', '.join(FAULTS)}"})
                return
            try:
                self._answer(200, cloud.within(lambda: fault(cloud, **arguments)))
            except NoTargetError as error:
                self._answer(409, {"error": str(error)})
            except (TypeError, ValueError, LookupError) as error:
                self._answer(400, {"error": str(error)})

        def _path(self) -> str | None:
            """What is asked for, by somebody who may; the answer to others is given here."""
            given, _, path = self.path.lstrip("/").partition("/")
            if self.headers.get("Origin") or not secrets.compare_digest(given.encode(), secret.encode()):
                self._answer(403, {"error": "not for you"})
                return None
            return path

        def _answer(self, code: int, content: Any) -> None:
            raw = json.dumps(content).encode()
            self.send_response(code)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw)

        def log_message(self, format: str, *args: Any) -> None:
            """Requests are no news."""

    return ThreadingHTTPServer(("127.0.0.1", 0), Handler)


def main() -> None:
    cloud = Cloud(Settings.model_validate_json(sys.argv[1]))
    secret = secrets.token_urlsafe(32)
    control = control_server(cloud, secret)
    threading.Thread(target=control.serve_forever, args=(0.1,), daemon=True).start()
    addresses = {"url": cloud.url, "control_url": f"http://127.0.0.1:{control.server_port}/{secret}"}
    addresses["worker_key"] = cloud.worker_key
    print(json.dumps(addresses), flush=True)
    try:
        sys.stdin.read()
    except KeyboardInterrupt:
        pass
    finally:
        cloud.close()
        os._exit(0)  # taking moto's modules apart would take longer than everything before


if __name__ == "__main__":
    main()
