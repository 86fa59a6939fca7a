"""Asks SkyPilot through the bridge, a process in SkyPilot's own environment. One bridge serves a whole worker."""

from __future__ import annotations

import asyncio
import json
import os
from collections import deque
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible.pools.skypilot.failures import ApiServerUnreachable, SkyFailure, SkyMissing, classify

BRIDGE = Path(__file__).with_name("bridge.py")
ANSWER_SECONDS = 600.0
"""A call that reaches into a machine takes up to half a minute where the API server is busy; starting that server
itself, minutes."""
_LONGEST_LINE = 2**24
_OURS = ("PREFECT_", "PYTHON", "VIRTUAL_ENV")
"""Variables of this environment that mean nothing there, or lead it back here."""


@dataclass(frozen=True)
class Cluster:
    """A cluster as SkyPilot has it on record."""

    name: str
    status: str
    launched_at: int | None = None
    resources: str = ""
    reason: str = ""

    @property
    def up(self) -> bool:
        return self.status == "UP"


class Sky:
    """SkyPilot's SDK, asked from here. All methods raise `SkyFailure`."""

    def __init__(self, python: Path, api_server: str = "") -> None:
        self._python, self._api_server = python, api_server
        self._process: asyncio.subprocess.Process | None = None
        self._starting = asyncio.Lock()
        self._waiting: dict[int, asyncio.Future[Any]] = {}
        self._printed: deque[str] = deque(maxlen=5)
        self._readers: list[asyncio.Task[None]] = []
        self._count = 0
        self._answered = False

    async def launch(self, name: str, task: dict[str, Any], idle_minutes: int) -> str:
        """Begin to bring up a cluster with its task; returns the request's id."""
        return str(await self._ask("launch", name=name, task=task, idle_minutes=idle_minutes))

    async def wait(self, request: str) -> None:
        """Until the request is over."""
        await self._ask("wait", None, request=request)

    async def launching(self, name: str) -> list[str]:
        """Ids of requests to launch that cluster which are not over yet."""
        return [str(one) for one in await self._ask("launching", name=name)]

    async def clusters(self, names: list[str] | None = None, *, refresh: bool = False) -> list[Cluster]:
        """Those on record, or those of the names that are; `refresh`: after the cloud was asked."""
        return [Cluster(**one) for one in await self._ask("clusters", names=names, refresh=refresh)]

    async def job(self, name: str) -> str | None:
        """The state of the cluster's task; None if it has none yet."""
        state = await self._ask("job", name=name)
        return None if state is None else str(state)

    async def last_lines(self, name: str) -> str:
        """The last that the cluster's task has printed."""
        return str(await self._ask("last_lines", name=name))

    async def down(self, name: str) -> None:
        """Take the cluster down."""
        await self._ask("down", name=name)

    async def cancel(self, request: str) -> None:
        """Give up a request."""
        await self._ask("cancel", request=request)

    async def facts(self) -> dict[str, Any]:
        """SkyPilot's `version`, and the `clouds` that it has access to."""
        return dict(await self._ask("facts"))

    async def close(self) -> None:
        """End the bridge; the API server goes on."""
        if self._process is not None and self._process.returncode is None:
            self._process.kill()
            await self._process.wait()
        for reader in self._readers:
            reader.cancel()

    async def _ask(self, do: str, seconds: float | None = ANSWER_SECONDS, /, **given: Any) -> Any:
        async with self._starting:
            if self._process is None or self._process.returncode is not None:
                await self._start()
        assert self._process is not None
        assert self._process.stdin is not None
        self._count += 1
        number = self._count
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting[number] = answer
        try:
            self._process.stdin.write(json.dumps({"id": number, "do": do, "with": given}).encode() + b"\n")
            await self._process.stdin.drain()
            async with asyncio.timeout(seconds):
                return await answer
        except TimeoutError:
            raise ApiServerUnreachable(f"SkyPilot did not answer within {seconds:.0f} s ({do})") from None
        except (BrokenPipeError, ConnectionResetError):
            raise self._ended() from None
        finally:
            self._waiting.pop(number, None)

    async def _start(self) -> None:
        environment = {name: value for name, value in os.environ.items() if not name.startswith(_OURS)}
        environment.setdefault("SKYPILOT_DISABLE_USAGE_COLLECTION", "1")
        if self._api_server:
            environment["SKYPILOT_API_SERVER_ENDPOINT"] = self._api_server
        # The API server, which the SDK starts where none runs, looks for its own programs on the path.
        environment["PATH"] = f"{self._python.parent}{os.pathsep}{environment.get('PATH', '')}"
        try:
            self._process = await asyncio.create_subprocess_exec(
                *(str(self._python), str(BRIDGE)),
                env=environment,
                stdin=asyncio.subprocess.PIPE,
                stdout=asyncio.subprocess.PIPE,
                stderr=asyncio.subprocess.PIPE,
                limit=_LONGEST_LINE,
            )
        except OSError as error:
            raise SkyMissing(f"{self._python} cannot be started: {error.strerror}; run: crucible sky setup") from error
        self._readers = [
            asyncio.create_task(self._read_answers(self._process)),
            asyncio.create_task(self._read_log(self._process)),
        ]

    async def _read_answers(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdout is not None
        async for line in process.stdout:
            reply = json.loads(line)
            self._answered = True
            waiting = self._waiting.pop(reply["id"], None)
            if waiting is None or waiting.done():
                continue
            if error := reply.get("error"):
                waiting.set_exception(classify(error["type"], error["message"], error["history"]))
            else:
                waiting.set_result(reply.get("value"))
        await process.wait()
        for waiting in self._waiting.values():
            if not waiting.done():
                waiting.set_exception(self._ended())

    async def _read_log(self, process: asyncio.subprocess.Process) -> None:
        assert process.stderr is not None
        async for line in process.stderr:
            self._printed.append(line.decode(errors="replace").strip())

    def _ended(self) -> SkyFailure:
        said = " ".join(self._printed) or "it printed nothing"
        if self._answered:  # killed, perhaps; the next request starts another
            return ApiServerUnreachable(f"SkyPilot's process ended ({said})")
        return SkyMissing(f"SkyPilot's process ended ({said}); run: crucible sky setup")
