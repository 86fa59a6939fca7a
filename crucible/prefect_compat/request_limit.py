"""WebSockets do not count as requests: otherwise 25 jobs at a time bring a server with SQLite to a standstill.

Such a server answers at most a hundred requests at a time (`RequestLimitMiddleware`). A WebSocket counts as one for as
long as it is open, and each flow run keeps two open, one for its events and one for its cancellation. The hundredth
WebSocket is followed by no answer any more, not even to `/api/health`: the runs that could close theirs wait for one.

Upstream issue: none found. Delete this when Prefect's limit is one for HTTP alone. Checked with prefect 3.8.8.
"""

from __future__ import annotations

from typing import Any

from fastapi import FastAPI
from prefect.server.api.server import RequestLimitMiddleware


class HttpRequestLimit(RequestLimitMiddleware):
    """Prefect's limit, for HTTP requests alone."""

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await super().__call__(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def let_websockets_pass(app: FastAPI) -> None:
    """Limit this server's HTTP requests alone. Call it before the server starts."""
    for entry in app.user_middleware:
        declared: Any = entry  # its class is typed as a factory that cannot be compared
        if declared.cls is RequestLimitMiddleware:
            declared.cls = HttpRequestLimit
