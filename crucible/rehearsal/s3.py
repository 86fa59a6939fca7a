"""moto's S3 server with creation as S3 promises it: of several writers of one object exactly one wins.

moto looks whether an object is there and stores it later: two requests with `If-None-Match: *` that meet in between are
both answered that they created it.
"""

from __future__ import annotations

import functools
import threading
from collections.abc import Collection
from typing import Any

from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer
from werkzeug.serving import make_server

from crucible.rehearsal.gate import KeyGate


class S3Server(ThreadedMotoServer):
    """An S3 on a local port. With `keys`, it answers programs that have one of them and nobody else."""

    def __init__(self, host: str, port: int = 0, keys: Collection[str] | None = None) -> None:
        super().__init__(host, port, verbose=False)
        self._keys = keys
        _create_one_at_a_time()

    def _server_entry(self) -> None:
        app: Any = DomainDispatcherApplication(create_backend_app)
        app = app if self._keys is None else KeyGate(app, self._keys)
        self._server = make_server(self._ip_address, self._port, app, threaded=True, request_handler=_QuietHandler)
        self._server_ready_event.set()
        self._server.serve_forever()


class _QuietHandler(MotoRequestHandler):
    """Without a line on stderr for every request, which would bury what the drill shows."""

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        pass


def _create_one_at_a_time() -> None:
    responses: Any = S3Response
    put_object = responses.put_object
    if not hasattr(put_object, "__wrapped__"):
        one_at_a_time = threading.Lock()

        @functools.wraps(put_object)
        def put(response: Any) -> Any:
            with one_at_a_time:
                return put_object(response)

        responses.put_object = put
