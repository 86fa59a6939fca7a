"""The process that plays AWS: `python -m crucible.rehearsal.aws '{"folder": …, "working_directory": …}'`.

Prints one JSON line with its addresses when it is up, answers on its control port, and ends with everything it started
when its standard input is closed: a rehearsal cannot outlive whoever wanted it.
"""

from __future__ import annotations

import json
import os
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from crucible.rehearsal.aws.cloud import Cloud
from crucible.rehearsal.aws.faults import FAULTS, NoTargetError
from crucible.rehearsal.aws.settings import Settings


def control_server(cloud: Cloud) -> ThreadingHTTPServer:
    """`GET /state`, `GET /timeline`, `POST /faults/NAME` with JSON arguments."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            if self.path == "/state":
                self._answer(200, cloud.within(cloud.state))
            elif self.path == "/timeline":
                self._answer(200, list(cloud.timeline))
            else:
                self._answer(404, {"error": f"nothing at {self.path}"})

        def do_POST(self) -> None:
            if self.headers.get("Origin"):
                self._answer(403, {"error": "not for web pages"})
                return
            arguments = json.loads(self.rfile.read(int(self.headers.get("Content-Length") or 0)) or b"{}")
            fault = FAULTS.get(self.path.removeprefix("/faults/"))
            if fault is None:
                self._answer(404, {"error": f"no fault {self.path}; there are: {', '.join(FAULTS)}"})
                return
            try:
                self._answer(200, cloud.within(lambda: fault(cloud, **arguments)))
            except NoTargetError as error:
                self._answer(409, {"error": str(error)})
            except (TypeError, ValueError, LookupError) as error:
                self._answer(400, {"error": str(error)})

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
    control = control_server(cloud)
    threading.Thread(target=control.serve_forever, args=(0.1,), daemon=True).start()
    addresses = {"url": cloud.url, "control_url": f"http://127.0.0.1:{control.server_port}"}
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
