"""One engine ahead: a flow run is taken up by a process that has loaded Prefect already.

Loading it is most of what a flow run's start takes. The next engine is loaded while the run begins, when there is
little else to do. What an engine was loaded with holds for it: a run that wants other settings gets a new process.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process
from prefect.settings import get_current_settings
from prefect.utilities import processutils

__all__ = ["ENGINE", "EngineAhead"]

ENGINE = [sys.executable, "-m", "prefect.engine"]
_OF_ONE_RUN = "PREFECT__"
"""Variables that begin so tell the engine of its flow run, and are read when it runs."""


class EngineAhead:
    """`async with EngineAhead():` whatever Prefect starts as `ENGINE` here is the process ahead, if it fits."""

    def __init__(self) -> None:
        self._process: Process | None = None
        self._environment: dict[str, str] = {}
        self._loading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> EngineAhead:
        self._as_it_was = processutils.open_process
        processutils.open_process = self._open
        settings = get_current_settings().to_environment_variables(exclude_unset=True)
        await self._load({**os.environ, **settings})
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        processutils.open_process = self._as_it_was
        if self._loading is not None:
            self._loading.cancel()
        await self._leave(self._process)

    @asynccontextmanager
    async def _open(self, command: list[str], **options: Any) -> AsyncIterator[Process]:
        """In place of Prefect's function, which it calls for every process it starts."""
        process = await self._take(command, options)
        if process is None:
            async with self._as_it_was(command, **options) as process:
                yield process
            return
        try:
            async with process:
                yield process
        finally:
            await self._leave(process)

    async def _take(self, command: list[str], options: Mapping[str, Any]) -> Process | None:
        """The process ahead, told what to run; the next one is being loaded. None if it does not fit or has ended."""
        environment = options.get("env")
        if command != ENGINE or environment is None or set(options) - {"env", "cwd", "stdout", "stderr"}:
            return None
        process, fits = self._process, _settings(environment) == self._environment
        self._process = None
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._load(environment))
        if process is None or process.returncode is not None or not fits or options["stdout"] != subprocess.PIPE:
            await self._leave(process)
            return None
        told = {"environment": dict(environment), "folder": os.fspath(options.get("cwd") or Path.cwd())}
        try:
            assert process.stdin is not None
            await process.stdin.send(json.dumps(told).encode() + b"\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            await self._leave(process)
            return None
        return process

    async def _load(self, environment: Mapping[str, str]) -> None:
        self._environment = _settings(environment)
        with suppress(OSError):  # a machine without room for it has none for a flow run, which will tell
            self._process = await anyio.open_process(
                [sys.executable, "-m", "crucible.pools.local.engine"],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )

    async def _leave(self, process: Process | None) -> None:
        """End a process, if it has not ended, and let go of its pipes."""
        if process is None:
            return
        with suppress(ProcessLookupError):
            process.terminate()
        with anyio.CancelScope(shield=True):
            await process.aclose()


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_OF_ONE_RUN)}
