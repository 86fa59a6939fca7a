"""Retry calls to a Prefect server that is away, so that a decision is not lost because nobody could record it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable
from typing import TypeVar

import httpx

T = TypeVar("T")
_LONGEST_PAUSE_SECONDS = 30.0
_SERVER_ERROR = 500
_LATER = (408, 429)
"""What a gateway in front of a busy server says, or one that limits requests; Prefect's client has tried six times."""

logger = logging.getLogger(__name__)


async def retry_while_away(call: Callable[[], Awaitable[T]]) -> T:
    """Call the Prefect API again and again while the server does not answer; other errors are raised."""
    pause = 1.0
    while True:
        try:
            return await call()
        except httpx.TransportError as error:
            reason = str(error) or type(error).__name__
        except httpx.HTTPStatusError as error:
            if error.response.status_code < _SERVER_ERROR and error.response.status_code not in _LATER:
                raise
            reason = f"status {error.response.status_code}"
        logger.warning("The Prefect API does not answer (%s); trying again in %g s", reason, pause)
        await asyncio.sleep(pause)
        pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)
