"""Whether a node reaches the Prefect server is found out by asking it."""

from __future__ import annotations

import socket
import threading
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from crucible.errors import ServiceError
from tasks.scripts import read_secrets
from tasks.unconnected import server_answers


@pytest.mark.parametrize(("status", "answers"), [(200, True), (401, True), (502, False)])
def test_a_server_that_answers_is_there_and_a_gateway_without_one_is_not(status: int, answers: bool) -> None:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            assert self.path == "/api/health"
            self.send_response(status)
            self.end_headers()

        def log_message(self, *args: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Handler)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        assert server_answers(f"http://127.0.0.1:{server.server_port}/api", looks=2, pause_seconds=0) is answers
    finally:
        server.shutdown()


def test_nobody_answers_at_a_closed_port_or_a_wrong_address() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # and does not listen
        assert not server_answers(f"http://127.0.0.1:{taken.getsockname()[1]}/api", looks=2, pause_seconds=0)
    assert not server_answers("", looks=1)
    assert not server_answers("http://[::bad", looks=1)


def test_secrets_come_from_the_machine_where_no_server_is_in_reach() -> None:
    machine = {"HF_TOKEN": "first", "WANDB_API_KEY": "second"}
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):  # nothing listens there
        assert read_secrets([*machine], machine) == machine
        with pytest.raises(ServiceError, match=r"OPENAI_KEY: not among this machine's variables, .* did not answer"):
            read_secrets(["HF_TOKEN", "OPENAI_KEY"], machine)
