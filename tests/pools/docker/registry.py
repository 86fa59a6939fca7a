"""As much of a container registry as pushing needs (OCI distribution, version 2), over HTTP on this machine."""

from __future__ import annotations

import hashlib
import re
import threading
import uuid
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from urllib.parse import parse_qs, urlsplit


class Registry:
    """Keeps what is pushed in memory: `content` by digest, `manifests` as `name:tag` → digest."""

    def __init__(self) -> None:
        self.content: dict[str, bytes] = {}
        self.manifests: dict[str, str] = {}
        self.uploads: dict[str, bytes] = {}
        registry = self

        class Handler(_Handler):
            kept = registry

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)

    @property
    def address(self) -> str:
        """Host and port; engines speak plain HTTP with this machine's own registries."""
        return f"127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Registry:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()


class _Handler(BaseHTTPRequestHandler):
    kept: Registry
    protocol_version = "HTTP/1.1"

    def log_message(self, *_: object) -> None:
        """Quiet."""

    def do_GET(self) -> None:
        self._answer(200 if self.path == "/v2/" else 404)

    def do_HEAD(self) -> None:
        digest = self.path.rsplit("/", 1)[-1]
        self._answer(200 if digest in self.kept.content else 404, {"Docker-Content-Digest": digest})

    def do_POST(self) -> None:
        upload = uuid.uuid4().hex
        self.kept.uploads[upload] = b""
        self._answer(202, {"Location": f"{self.path.rstrip('/')}/{upload}", "Docker-Upload-UUID": upload})

    def do_PATCH(self) -> None:
        upload = self.path.rsplit("/", 1)[-1]
        self.kept.uploads[upload] += self._body()
        size = len(self.kept.uploads[upload])
        self._answer(202, {"Location": self.path, "Docker-Upload-UUID": upload, "Range": f"0-{size - 1}"})

    def do_PUT(self) -> None:
        parts = urlsplit(self.path)
        body = self._body()
        if match := re.fullmatch(r"/v2/(.+)/manifests/(.+)", parts.path):
            digest = f"sha256:{hashlib.sha256(body).hexdigest()}"
            self.kept.manifests[f"{match[1]}:{match[2]}"] = digest
        else:
            body = self.kept.uploads.pop(parts.path.rsplit("/", 1)[-1]) + body
            digest = parse_qs(parts.query)["digest"][0]
        self.kept.content[digest] = body
        self._answer(201, {"Docker-Content-Digest": digest})

    def _body(self) -> bytes:
        if self.headers.get("Transfer-Encoding") != "chunked":
            return self.rfile.read(int(self.headers.get("Content-Length") or 0))
        body = b""
        while size := int(self.rfile.readline(), 16):
            body += self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()
        return body

    def _answer(self, code: int, headers: dict[str, str] | None = None) -> None:
        self.send_response(code)
        for name, value in {"Docker-Distribution-Api-Version": "registry/2.0", **(headers or {})}.items():
            self.send_header(name, value)
        self.send_header("Content-Length", "0")
        self.end_headers()
