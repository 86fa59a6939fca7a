"""The look at the Prefect server before a pool is registered."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from crucible.errors import ServiceError
from crucible.pools.common.registration import require_server


@contextmanager
def answering(status: int) -> Iterator[str]:
    """A server that gives every request this status; its address."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.send_header("Location", "https://login.example.org")
            self.end_headers()

        def log_message(self, format: str, *args: object) -> None:
            """Nothing."""

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}/api"
        server.shutdown()


@pytest.mark.parametrize("status", [200, 302, 401, 403])
def test_a_server_that_wants_more_than_a_look_is_there(status: int) -> None:
    """Such as a gateway in front of it: the client that follows has headers and keys, and says what it met."""
    with answering(status) as url, temporary_settings({PREFECT_API_URL: url}):
        require_server()


@pytest.mark.parametrize("status", [404, 503])
def test_a_server_that_is_away_is_said_to_be(status: int) -> None:
    with (
        answering(status) as url,
        temporary_settings({PREFECT_API_URL: url}),
        pytest.raises(ServiceError, match="does not answer"),
    ):
        require_server()
