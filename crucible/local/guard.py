"""What the local server refuses before Prefect sees it: requests that another web page makes in your browser.

Prefect's password already stops them. Two checks stand in front of it, so that neither alone decides:

- `Origin`: a page of another origin may not send anything. CORS alone only keeps it from reading the answer.
- `Host`: a name that somebody points at 127.0.0.1 (DNS rebinding) is not ours. Programs may use any name, which a proxy
  or a tunnel needs: they send the password or, to a WebSocket, no `Origin`, and Prefect asks them for the password.

It also serves the login page, which hands the password of a link over to Prefect's UI.
"""

from __future__ import annotations

import base64
import hmac
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.responses import HTMLResponse, PlainTextResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from crucible.local.access import LOGIN_PATH

# A container reaches its own host under the last one; nobody outside can own a name below .internal.
LOOPBACK = frozenset({"127.0.0.1", "localhost", "::1", "host.docker.internal"})
_PROBES = ("/api/health", "/api/ready")
"""What Prefect answers without a password as well."""
_LOGIN_PAGE = """<!doctype html><meta charset="utf-8"><title>Crucible</title>
<p id="message">Opening the Prefect UI …</p>
<script>
const next = new URLSearchParams(location.search).get("next") || "/";
if (location.hash.length > 1 && next.startsWith("/") && !next.startsWith("//") && !next.includes("\\\\")) {
  localStorage.setItem("prefect-password", decodeURIComponent(location.hash.slice(1)));
  location.replace(next);
} else {
  document.getElementById("message").textContent = "This link is incomplete. Run: crucible ui";
}
</script>
"""
_LOGIN_HEADERS = {
    "Cache-Control": "no-store",
    "Referrer-Policy": "no-referrer",
    "X-Frame-Options": "DENY",
}


class Guard:
    """An ASGI application in front of `app`."""

    def __init__(self, app: ASGIApp, auth_string: str | None, ui_url: str | None = None) -> None:
        """`ui_url`: the address under which browsers open the UI, where that is not this machine."""
        ui = urlsplit(ui_url or "")
        self._app = app
        self._origin = f"{ui.scheme}://{ui.netloc}"
        self._login = "Basic " + base64.b64encode((auth_string or "").encode()).decode() if auth_string else None
        self._hosts = LOOPBACK | ({ui.hostname} if ui.hostname else set())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
        elif problem := self._problem(scope, Headers(scope=scope)):
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008, "reason": problem})
            else:
                await PlainTextResponse(f"refused: {problem}\n", 403)(scope, receive, send)
        elif scope["type"] == "http" and scope["path"] == LOGIN_PATH:
            await HTMLResponse(_LOGIN_PAGE, headers=_LOGIN_HEADERS)(scope, receive, send)
        else:
            await self._app(scope, receive, send)

    def _problem(self, scope: Scope, headers: Headers) -> str | None:
        host = headers.get("host", "")
        origin = headers.get("origin")
        if origin is not None and urlsplit(origin).netloc != host and origin != self._origin:
            return f"a page of {origin} may not use this server"
        if scope["path"] in _PROBES or (scope["type"] == "websocket" and origin is None):
            return None
        if self._login and hmac.compare_digest(headers.get("authorization", "").encode(), self._login.encode()):
            return None
        if urlsplit(f"//{host}").hostname not in self._hosts:
            return f"this server is not called {host}"
        return None
