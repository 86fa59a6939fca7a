"""Reading what a sandbox prints while it is still printing; both backends of Modal's are served from here."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from crucible.rehearsal.modal.cloud import Sandbox

_LOOK_AGAIN_SECONDS = 0.1


async def follow(sandbox: Sandbox, name: str, offset: int, timeout: float | None) -> AsyncIterator[tuple[int, bytes]]:
    """Yield (offset after the chunk, chunk) of `stdout` or `stderr` until the end or `timeout` seconds."""
    deadline = time.monotonic() + timeout if timeout else None
    while True:
        over = sandbox.over.is_set()  # asked before reading, so that the last words are read too
        file = sandbox.folder / name
        if file.exists():
            with file.open("rb") as stream:
                stream.seek(offset)
                while chunk := stream.read(65536):
                    offset += len(chunk)
                    yield offset, chunk
        if over or (deadline is not None and time.monotonic() > deadline):
            return
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(_LOOK_AGAIN_SECONDS):
                await sandbox.over.wait()
