"""A server with many jobs still answers: each job's processes keep WebSockets open for as long as they run."""

from __future__ import annotations

import asyncio
from typing import Any

import httpx
from websockets.asyncio.client import connect
from websockets.typing import Subprotocol

OPEN_AT_ONCE = 120  # Prefect's own limit is 100


def test_the_server_answers_however_many_websockets_are_open(prefect_server: Any) -> None:
    async def answers() -> int:
        events = prefect_server.api_url.replace("http", "ws", 1) + "/events/in"
        sockets = [await connect(events, subprotocols=[Subprotocol("prefect")]) for _ in range(OPEN_AT_ONCE)]
        try:
            async with httpx.AsyncClient() as client:
                return (await client.get(f"{prefect_server.api_url}/health", timeout=30)).status_code
        finally:
            for socket in sockets:
                await socket.close()

    assert asyncio.run(asyncio.wait_for(answers(), 90)) == 200
