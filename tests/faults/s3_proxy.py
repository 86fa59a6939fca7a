"""An HTTP proxy in front of an S3 stand-in that misbehaves on request: the network and the server as they are at worst.

with S3Proxy(endpoint) as proxy:
    store = store_at("s3://bucket/runs", endpoint_url=proxy.url, key="test", secret="test")
    proxy.refuse()                                  # nobody listens
    proxy.answer(503, "SlowDown")                   # every request, until `heal()`
    proxy.answer(403, "ExpiredToken", times=3)      # the next three
    proxy.truncate_uploads()                        # says 200, keeps half
    proxy.cut_downloads()                           # promises the object, sends half and hangs up
    proxy.heal()
"""

from __future__ import annotations

import http.client
import random
import socket
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any, Self
from urllib.parse import urlsplit

Fault = Callable[["_Handler", bytes], bool]
"""Looks at one request with its body; True when it has answered it."""

_NOT_FORWARDED = {"connection", "transfer-encoding", "keep-alive", "content-length", "date", "server"}

_CHECKSUMS = ("x-amz-checksum", "x-amz-sdk-checksum", "x-amz-trailer")


class S3Proxy:
    """Forwards to `endpoint`; see the module's docstring for what can be asked of it."""

    def __init__(self, endpoint: str) -> None:
        self.target = urlsplit(endpoint).netloc
        self.requests: list[tuple[str, str]] = []
        self._fault: Fault | None = None
        self._left: int | None = None
        self._lock = threading.Lock()
        self._address = ("127.0.0.1", _free_port())
        self._server: _Server | None = None
        self._thread: threading.Thread | None = None

    @property
    def url(self) -> str:
        return "http://{}:{}".format(*self._address)

    def __enter__(self) -> Self:
        self._listen()
        return self

    def __exit__(self, *_exc: object) -> None:
        self._close()

    def heal(self) -> None:
        """Behave again."""
        self._fail(None, None)
        if self._server is None:
            self._listen()

    def refuse(self) -> None:
        """Connections are refused, those that are open break."""
        self._close()

    def answer(self, status: int, code: str, times: int | None = None, only: str = "") -> None:
        """Answer with an S3 error instead of forwarding; `only` picks requests whose path contains it."""

        def fault(handler: _Handler, _body: bytes) -> bool:
            if only not in handler.path:
                return False
            text = f"<?xml version='1.0'?><Error><Code>{code}</Code><Message>{code} by test</Message></Error>"
            handler.reply(status, {"Content-Type": "application/xml"}, text.encode())
            return True

        self._fail(fault, times)

    def ignore_conditions(self) -> None:
        """Create-only writes replace what is there, as in stores that do not know `If-None-Match`."""

        def fault(handler: _Handler, body: bytes) -> bool:
            if handler.command != "PUT" or "If-None-Match" not in handler.headers:
                return False
            del handler.headers["If-None-Match"]
            handler.reply(*handler.forward(body))
            return True

        self._fail(fault, None)

    def reject_checksums(self) -> None:
        """The checksums of newer clients are not implemented, as in some S3-compatible stores."""

        def fault(handler: _Handler, _body: bytes) -> bool:
            checksums = [name for name in handler.headers if name.lower().startswith(_CHECKSUMS)]
            if handler.command != "PUT" or not checksums:
                return False
            text = (
                "<Error><Code>NotImplemented</Code><Message>Header x-amz-checksum-crc32 is not known</Message></Error>"
            )
            handler.reply(501, {"Content-Type": "application/xml"}, text.encode())
            return True

        self._fail(fault, None)

    def lose_answers(self, times: int | None = None) -> None:
        """Forward writes, then hang up before the answer: the client cannot know that they arrived."""

        def fault(handler: _Handler, body: bytes) -> bool:
            if handler.command != "PUT":
                return False
            handler.forward(body)
            handler.hang_up()
            return True

        self._fail(fault, times)

    def truncate_uploads(self, times: int | None = None, only: str = "") -> None:
        """Keep half of what is put, and say that all is well."""

        def fault(handler: _Handler, body: bytes) -> bool:
            if handler.command != "PUT" or only not in handler.path or len(body) < 2:
                return False
            handler.reply(*handler.forward(body[: len(body) // 2]))
            return True

        self._fail(fault, times)

    def break_uploads(self, times: int | None = None) -> None:
        """Hang up in the middle of a PUT; nothing is kept."""

        def fault(handler: _Handler, _body: bytes) -> bool:
            if handler.command != "PUT":
                return False
            handler.hang_up()
            return True

        self._fail(fault, times)

    def cut_downloads(self, times: int | None = None) -> None:
        """Promise the whole object, send half of it, hang up."""

        def fault(handler: _Handler, body: bytes) -> bool:
            if handler.command != "GET" or "list-type" in handler.path:
                return False
            status, headers, content = handler.forward(body)
            handler.reply(status, headers, content[: len(content) // 2], promised=len(content))
            handler.hang_up()
            return True

        self._fail(fault, times)

    def _fail(self, fault: Fault | None, times: int | None) -> None:
        with self._lock:
            self._fault, self._left = fault, times

    def _treat(self, handler: _Handler, body: bytes) -> bool:
        with self._lock:
            fault = self._fault if self._left is None or self._left > 0 else None
        if fault is None or not fault(handler, body):
            return False
        with self._lock:
            if self._left is not None:
                self._left -= 1
        return True

    def _listen(self) -> None:
        self._server = _Server(self._address, _Handler)
        self._server.proxy = self
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)
        self._thread.start()

    def _close(self) -> None:
        server, self._server = self._server, None
        if server is None or self._thread is None:
            return
        server.shutdown()
        self._thread.join()
        server.server_close()
        server.hang_up_all()


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    allow_reuse_address = True
    proxy: S3Proxy

    def __init__(self, *arguments: Any) -> None:
        self._open: set[socket.socket] = set()
        super().__init__(*arguments)

    def process_request(self, request: Any, client_address: Any) -> None:
        self._open.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        self._open.discard(request)
        super().shutdown_request(request)

    def handle_error(self, *_details: Any) -> None:
        """A broken connection is this server's trade."""

    def hang_up_all(self) -> None:
        for connection in list(self._open):
            _hang_up(connection)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def _serve(self) -> None:
        body = self._body()
        self.server.proxy.requests.append((self.command, self.path))
        if not self.server.proxy._treat(self, body):
            self.reply(*self.forward(body))

    do_GET = do_PUT = do_POST = do_HEAD = do_DELETE = _serve  # noqa: N815 - named by http.server

    def forward(self, body: bytes) -> tuple[int, dict[str, str], bytes]:
        connection = http.client.HTTPConnection(self.server.proxy.target, timeout=30)
        headers = {name: value for name, value in self.headers.items() if name.lower() not in _NOT_FORWARDED}
        headers.pop("Expect", None)
        connection.request(self.command, self.path, body=body, headers=headers | {"Content-Length": str(len(body))})
        answer = connection.getresponse()
        content = answer.read()
        found = {name: value for name, value in answer.getheaders() if name.lower() not in _NOT_FORWARDED}
        if self.command == "HEAD":
            found["Content-Length"] = answer.getheader("Content-Length") or "0"
        connection.close()
        return answer.status, found, content

    def reply(self, status: int, headers: dict[str, str], content: bytes, promised: int | None = None) -> None:
        self.send_response_only(status)
        for name, value in headers.items():
            self.send_header(name, value)
        if "Content-Length" not in headers:
            self.send_header("Content-Length", str(len(content) if promised is None else promised))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)
        self.wfile.flush()

    def hang_up(self) -> None:
        self.close_connection = True
        _hang_up(self.connection)

    def log_message(self, *_arguments: Any) -> None:
        """Quiet."""

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding", "").lower() != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        chunks = []
        while size := int(self.rfile.readline().split(b";")[0], 16):
            chunks.append(self.rfile.read(size))
            self.rfile.readline()
        self.rfile.readline()
        return b"".join(chunks)


def _hang_up(connection: socket.socket) -> None:
    try:
        connection.shutdown(socket.SHUT_RDWR)
    except OSError:
        return


def _free_port() -> int:
    """A port that no outgoing connection is given by chance, so that it is still ours after `refuse`."""
    while True:
        port = random.randrange(20_000, 30_000)
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) != 0:
                return port
