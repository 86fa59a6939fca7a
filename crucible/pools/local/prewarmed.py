"""The prewarmed engine: a process that has loaded Prefect takes up the next flow run.

Loading Prefect is most of what the start of a flow run takes. The next engine is loaded while the run begins, when
there is little else to do. An engine keeps the settings that it was loaded with: a run with other settings gets a new
process.
"""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import anyio
from anyio.abc import Process
from prefect.settings import get_current_settings

from crucible.prefect_compat import process_start
from crucible.prefect_compat.patches import apply_all

ENGINE = [sys.executable, "-m", "prefect.engine"]
_OF_ONE_RUN = "PREFECT__"
"""Variables with this prefix concern one flow run. The engine reads them when it runs, not when it is loaded."""


class PrewarmedEngine:
    """`async with PrewarmedEngine():` what Prefect starts as `ENGINE` is the loaded process, if its settings fit.

    Where the patch that this needs stays off, Prefect starts every flow run itself.
    """

    def __init__(self) -> None:
        self._process: Process | None = None
        self._environment: dict[str, str] = {}
        self._loading: asyncio.Task[None] | None = None

    async def __aenter__(self) -> PrewarmedEngine:
        if all(status.on for status in apply_all([process_start.PATCH])):
            settings = get_current_settings().to_environment_variables(exclude_unset=True)
            await self._load({**os.environ, **settings})
            process_start.use(self._take)
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        process_start.use(None)
        if self._loading is not None:
            self._loading.cancel()
        if self._process is not None:
            await process_start.leave(self._process)

    async def _take(self, command: list[str], options: Mapping[str, Any]) -> Process | None:
        """The loaded process, with its orders; the next one is being loaded. None if it does not fit or has ended."""
        environment = options.get("env")
        if command != ENGINE or environment is None or set(options) - {"env", "cwd", "stdout", "stderr"}:
            return None
        process, fits = self._process, _settings(environment) == self._environment
        self._process = None
        if self._loading is None or self._loading.done():
            self._loading = asyncio.create_task(self._load(environment))
        if process is None:
            return None
        if process.returncode is not None or not fits or options["stdout"] != subprocess.PIPE:
            await process_start.leave(process)
            return None
        orders = {"environment": dict(environment), "folder": os.fspath(options.get("cwd") or Path.cwd())}
        try:
            assert process.stdin is not None
            await process.stdin.send(json.dumps(orders).encode() + b"\n")
        except (anyio.BrokenResourceError, anyio.ClosedResourceError):
            await process_start.leave(process)
            return None
        return process

    async def _load(self, environment: Mapping[str, str]) -> None:
        self._environment = _settings(environment)
        with suppress(OSError):  # a machine without room for it has none for a flow run either, which reports it
            self._process = await anyio.open_process(
                [sys.executable, "-m", "crucible.pools.local.engine"],
                env=self._environment,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
            )


def _settings(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith(_OF_ONE_RUN)}
