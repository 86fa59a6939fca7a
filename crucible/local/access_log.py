"""Every request to the local server, one line each on stdout: for measuring what a job asks of it.

    access 1764363000.123 POST /api/flow_runs/filter 200 0.012
    access 1764363000.456 EVENT prefect.flow-run.heartbeat

Time in unix seconds, the request, its status, and how many seconds the answer took. Events come through WebSockets.
"""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

SETTING = "CRUCIBLE_ACCESS_LOG"


class AccessLog:
    """`AccessLog(app)` answers as `app` does and prints what was asked."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "websocket":
            await self._app(scope, _printing_events(receive), send)
            return
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        began, status = time.time(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            await self._app(scope, receive, noting)
        finally:
            seconds = time.time() - began
            print(f"access {began:.3f} {scope['method']} {scope['path']} {status} {seconds:.3f}", flush=True)


def _printing_events(receive: Receive) -> Receive:
    async def printing() -> Message:
        message = await receive()
        if text := message.get("text"):
            content = json.loads(text)
            if "event" in content:
                print(f"access {time.time():.3f} EVENT {content['event']}", flush=True)
        return message

    return printing
