"""Who may use a rehearsed AWS: programs with a key of this rehearsal, no neighbour on this machine and no web page."""

from __future__ import annotations

import json
import re
import secrets
from collections.abc import Collection, Iterable
from typing import Any


def new_key(prefix: str = "AKIA") -> str:
    """The id of an access key that nobody can guess; signatures are not checked."""
    return f"{prefix}{secrets.token_hex(8)}".upper()


class KeyGate:
    """Lets in these keys only, and answers as AWS does to expired ones; moto takes any.

    Web pages get nothing: they send an `Origin`, which no AWS client does.
    """

    def __init__(self, app: Any, keys: Collection[str], expired: Collection[str] = ()) -> None:
        self.app, self.keys, self.expired = app, keys, expired

    def __call__(self, environ: dict[str, Any], start_response: Any) -> Iterable[bytes]:
        scope = re.search(r"Credential=([^/]+)/\d+/[^/]+/([^/]+)/", environ.get("HTTP_AUTHORIZATION", ""))
        if scope is None or scope[1] not in self.keys or "HTTP_ORIGIN" in environ:
            environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
            start_response("403 Forbidden", [("Content-Length", "0")])
            return []
        if scope[1] not in self.expired:
            return self.app(environ, start_response)  # type: ignore[no-any-return]
        environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        if environ["REQUEST_METHOD"] == "HEAD":  # as S3: a bare 400, because an answer to HEAD has no body
            start_response("400 Bad Request", [("Content-Length", "0")])
            return []
        text = "The security token included in the request is expired"
        if "HTTP_X_AMZ_TARGET" in environ:
            body, kind = json.dumps({"__type": "ExpiredTokenException", "message": text}), "application/x-amz-json-1.1"
        elif scope[2] == "s3":
            body, kind = f"<Error><Code>ExpiredToken</Code><Message>{text}</Message></Error>", "application/xml"
        else:
            error = f"<Error><Type>Sender</Type><Code>ExpiredToken</Code><Message>{text}</Message></Error>"
            body = f"<ErrorResponse>{error}<RequestId>{secrets.token_hex(8)}</RequestId></ErrorResponse>"
            kind = "text/xml"
        raw = body.encode()
        start_response("403 Forbidden", [("Content-Type", kind), ("Content-Length", str(len(raw)))])
        return [raw]
