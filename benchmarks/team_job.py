"""What one job asks of the Prefect server, without the job: the requests of a worker, a supervisor and an attempt.

How often is taken from the code of the real ones. What they ask for was read from the server's access log
(`crucible.local.access_log`) of real trainings; tests/local/test_team_size.py compares it with one again.
"""

from __future__ import annotations

import asyncio
import json
import os
import random
import time
import uuid
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import httpx
import websockets

from crucible.local.services import BATCH_SETTING
from tasks.observing import LATER_SHOW_SECONDS, LINES, REPEATED, SHOW_SECONDS
from tasks.stopping import LOOK_SECONDS

LOG_SECONDS = float(os.environ.get(BATCH_SETTING, "5"))
"""Log lines are sent together, this often."""


def seconds_between(lively: bool) -> dict[str, float]:
    """How often one job does what: in its first ten minutes (`lively`), or later, which is most of a long training."""
    lines, repeated = (
        (LINES.per_second, REPEATED.per_second) if lively else (LINES.later_per_second, REPEATED.later_per_second)
    )
    return {
        "logs": max(LOG_SECONDS, 1 / lines),
        "look": LOOK_SECONDS,
        "progress": SHOW_SECONDS if lively else LATER_SHOW_SECONDS,
        "report": SHOW_SECONDS if lively else LATER_SHOW_SECONDS,
        "commit": 1 / repeated,
    }


WORKER_SECONDS_BETWEEN = {"poll": 9.0, "cancelled": 5.0, "heartbeat": 30.0}
"""Counted in the access log, for one worker of Prefect 3.8 with work in progress."""
SIMULATED = {
    "POST /deployments/{}/create_flow_run",
    "POST /flow_runs/{}/set_state",
    "GET /flow_runs/{}",
    "PATCH /flow_runs/{}",
    "PATCH /flow_runs/{}/labels",
    "POST /flow_runs/filter",
    "GET /deployments/{}",
    "GET /flows/{}",
    "POST /logs",
    "POST /artifacts",
    "PATCH /artifacts/{}",
    "POST /work_pools/{}/get_scheduled_flow_runs",
    "POST /work_pools/{}/workers/heartbeat",
    "EVENT prefect.artifact.created",
    "EVENT crucible.commit",
}
"""The kinds of requests and events that the simulation makes."""
REPORT_BYTES = 20_000
MOST_TRIES = 40


@dataclass
class Seen:
    """What the clients met."""

    seconds: list[float] = field(default_factory=list)
    """Of each answered request."""
    kinds: Counter[str] = field(default_factory=Counter)
    problems: Counter[str] = field(default_factory=Counter)
    """Statuses and errors of what had to be asked again."""
    longest_seconds: float = 0.0
    """Until a request was answered, with all its tries."""
    events: int = 0


class Client:
    """Asks one replica, and another one when that fails, as a proxy in front of them makes it; repeats what failed."""

    def __init__(self, urls: list[str], seen: Seen, first: int = 0) -> None:
        self._urls, self._seen, self._at = urls, seen, first
        self._http = httpx.AsyncClient(timeout=30, trust_env=False, limits=httpx.Limits(max_connections=100))
        self._sockets: dict[str, Any] = {}

    @property
    def _url(self) -> str:
        return self._urls[self._at % len(self._urls)]

    async def ask(self, method: str, path: str, body: Any = None) -> Any:
        """The answer. Raises `RuntimeError` when there is none after many tries."""
        began = time.monotonic()
        for number in range(MOST_TRIES):
            sent = time.monotonic()
            try:
                answer = await self._http.request(method, self._url + path, json=body)
            except httpx.HTTPError as error:
                problem = type(error).__name__
            else:
                if answer.is_success:
                    now = time.monotonic()
                    self._seen.seconds.append(now - sent)
                    self._seen.kinds[f"{method} {kind_of(path)}"] += 1
                    self._seen.longest_seconds = max(self._seen.longest_seconds, now - began)
                    return answer.json() if answer.content else None
                problem = str(answer.status_code)
                if answer.status_code < 500 and answer.status_code != 429:
                    raise RuntimeError(f"{method} {path}: {answer.status_code} {answer.text[:300]}")
            self._seen.problems[problem] += 1
            self._at += 1
            await asyncio.sleep(min(5.0, 0.25 * 2**number) * random.uniform(0.5, 1.5))
        raise RuntimeError(f"{method} {path}: no answer after {MOST_TRIES} tries")

    async def emit(self, run: str, event: str, resource: str) -> None:
        """An event through the WebSocket of that flow run's process."""
        message = {
            "id": str(uuid.uuid4()),
            "occurred": datetime.now(UTC).isoformat(),
            "event": event,
            "resource": {"prefect.resource.id": resource, "prefect.resource.name": "simulated"},
            "related": [{"prefect.resource.id": f"prefect.flow-run.{run}", "prefect.resource.role": "flow-run"}],
            "payload": {"message": "simulated"},
        }
        for number in range(MOST_TRIES):
            try:
                if run not in self._sockets:
                    address = self._url.replace("http://", "ws://") + "/events/in"
                    self._sockets[run] = await websockets.connect(address, open_timeout=30)
                await self._sockets[run].send(json.dumps(message))
                self._seen.events += 1
                self._seen.kinds[f"EVENT {event}"] += 1
                return
            except (OSError, websockets.WebSocketException, TimeoutError):
                self._sockets.pop(run, None)
                self._at += 1
                await asyncio.sleep(min(5.0, 0.25 * 2**number))

    async def close(self) -> None:
        for socket in self._sockets.values():
            with suppress(OSError, websockets.WebSocketException):
                await socket.close()
        await self._http.aclose()


@dataclass
class SimulatedJob:
    """One job: a supervising flow run and its attempt, from the start to the end."""

    client: Client
    deployment: dict[str, Any]
    number: int
    runs: list[str] = field(default_factory=list)
    progress: str = ""
    states: int = 0
    """Changes of state that the server acknowledged."""
    lines: int = 0
    """Log lines that it acknowledged."""
    percent: float = 0.0
    """The progress that it acknowledged last."""
    lively: bool = True
    report: str = ""

    async def run(self, seconds: float) -> None:
        """As a real one: created, picked up, running for so long, completed."""
        for name in (f"simulated-{self.number}", f"simulated-{self.number}-attempt-1"):
            await self._start(name)
        created = {"key": f"progress-simulated-{self.number}", "type": "progress", "data": 0.0}
        made = await self.client.ask("POST", "/artifacts/", created | {"flow_run_id": self.runs[1]})
        self.progress = made["id"]
        await self.client.emit(self.runs[1], "prefect.artifact.created", f"prefect.artifact.{self.progress}")
        report = {"key": f"job-simulated-{self.number}", "type": "markdown", "data": "x" * REPORT_BYTES}
        self.report = (await self.client.ask("POST", "/artifacts/", report | {"flow_run_id": self.runs[0]}))["id"]
        await self.client.emit(self.runs[0], "prefect.artifact.created", f"prefect.artifact.{self.report}")
        await self._commit()
        await self._everything_for(seconds)
        for run in reversed(self.runs):
            await self._set_state(run, "COMPLETED")

    async def _start(self, name: str) -> None:
        deployment = self.deployment["id"]
        created = {"parameters": {}, "name": name, "tags": ["simulated"], "state": {"type": "SCHEDULED"}}
        made = await self.client.ask("POST", f"/deployments/{deployment}/create_flow_run", created)
        run = made["id"]
        self.runs.append(run)
        await self.client.ask("GET", f"/deployments/{deployment}")
        await self._set_state(run, "PENDING")
        await self.client.ask("GET", f"/flows/{self.deployment['flow_id']}")
        await self.client.ask("PATCH", f"/flow_runs/{run}/labels", {"prefect.worker.name": "simulated"})
        await self._set_state(run, "PENDING", "Submitting")
        await self.client.ask("PATCH", f"/flow_runs/{run}", {"infrastructure_pid": "1"})
        for _ in range(5):
            await self.client.ask("GET", f"/flow_runs/{run}")
        await self._set_state(run, "RUNNING")

    async def _set_state(self, run: str, kind: str, name: str | None = None) -> None:
        state = {"type": kind, **({"name": name} if name else {})}
        await self.client.ask("POST", f"/flow_runs/{run}/set_state", {"state": state, "force": True})
        self.states += 1

    async def _everything_for(self, seconds: float) -> None:
        actions: dict[str, Callable[[], Awaitable[Any]]] = {
            "logs": self._log,
            "look": lambda: self.client.ask("GET", f"/flow_runs/{self.runs[0]}"),
            "progress": self._show_progress,
            "report": self._report,
            "commit": self._commit,
        }
        await repeat(actions, seconds_between(self.lively), seconds)

    async def _log(self) -> None:
        now = datetime.now(UTC).isoformat()
        line = {"name": "prefect.flow_runs", "level": 20, "message": f"step {self.lines}: loss 3.1416, 12.3 ms"}
        count = max(1, round(LOG_SECONDS * LINES.per_second)) if self.lively else 1
        await self.client.ask("POST", "/logs/", [line | {"timestamp": now, "flow_run_id": self.runs[1]}] * count)
        self.lines += count

    async def _show_progress(self) -> None:
        percent = min(99.0, self.percent + 0.1)
        await self.client.ask("PATCH", f"/artifacts/{self.progress}", {"data": percent})
        self.percent = percent

    async def _report(self) -> None:
        await self.client.ask("PATCH", f"/artifacts/{self.report}", {"data": "x" * REPORT_BYTES})

    async def _commit(self) -> None:
        await self.client.emit(self.runs[1], "crucible.commit", f"crucible.job.simulated-{self.number}")


async def worker(client: Client, pool: str, name: str, seconds: float) -> None:
    """What a worker asks for, whatever it runs."""
    cancelled = {"flow_runs": {"state": {"type": {"any_": ["CANCELLING"]}}}, "work_pools": {"name": {"any_": [pool]}}}
    actions: dict[str, Callable[[], Awaitable[Any]]] = {
        "poll": lambda: client.ask("POST", f"/work_pools/{pool}/get_scheduled_flow_runs", {}),
        "cancelled": lambda: client.ask("POST", "/flow_runs/filter", cancelled),
        "heartbeat": lambda: client.ask("POST", f"/work_pools/{pool}/workers/heartbeat", {"name": name}),
    }
    await repeat(actions, WORKER_SECONDS_BETWEEN, seconds)


async def repeat(
    actions: dict[str, Callable[[], Awaitable[Any]]], seconds_between: dict[str, float], seconds: float
) -> None:
    """Each action at its own pace, for so long. One that takes longer than its pace is not started twice at once."""
    end = time.monotonic() + seconds

    async def one(name: str, action: Callable[[], Awaitable[Any]]) -> None:
        at = time.monotonic() + random.uniform(0, seconds_between[name])
        while at < end:
            await asyncio.sleep(max(0.0, at - time.monotonic()))
            await action()
            at = max(at + seconds_between[name], time.monotonic())

    async with asyncio.TaskGroup() as group:
        for name, action in actions.items():
            group.create_task(one(name, action))


def kind_of(path: str) -> str:
    """A path without ids and names: what is asked, not of which object."""
    parts = path.removeprefix("/api").strip("/").split("/")
    named = {"work_pools", "variables", "name", "slug", "checksum", "queues"}
    kept = [
        "{}" if _is_id(part) or (number and parts[number - 1] in named and part not in _VERBS) else part
        for number, part in enumerate(parts)
    ]
    return "/" + "/".join(kept)


_VERBS = {"filter", "name", "count"}


def _is_id(part: str) -> bool:
    try:
        uuid.UUID(part)
    except ValueError:
        return False
    return True
