"""The services of the local set-up: how each one is started, and how to check that it answers."""

from __future__ import annotations

import os
import socket
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import datetime
from pathlib import Path

import httpx
import psutil

from crucible.errors import ServiceError
from crucible.local import access, database
from crucible.local.processes import ProcessRecord, environment, start_detached
from crucible.local.state import PROJECT, Home
from crucible.loopback import bypass_proxies, no_tls

HOST = "127.0.0.1"
DEFAULT_PORT = 4200
LAST_PORT = 32767
"""Above it, operating systems hand out ports for outgoing connections."""
POOL = "local"
POOL_TYPE = "crucible-local"
"""The worker's type. It also serves pools of the type `process`, which earlier versions made."""
WORKER_NAME = "crucible-local"
DOCKER_WORKER = "docker-worker"
BATCH_SETTING = "PREFECT_LOGGING_TO_API_BATCH_INTERVAL"

_LOOP_SECONDS = {
    f"PREFECT_SERVER_SERVICES_{name}_SECONDS": seconds
    for name, seconds in {
        "LATE_RUNS_LOOP": "15",
        "PAUSE_EXPIRATIONS_LOOP": "30",
        "CLEANUP_RECONCILER_LOOP": "30",
        "SCHEDULER_RECENT_DEPLOYMENTS_LOOP": "15",
    }.items()
}
"""How often the server's own loops run: each run takes CPU time from a training on the same machine."""


@dataclass(frozen=True)
class Service:
    """One long-running process."""

    name: str
    label: str
    command: tuple[str, ...]
    answers: Callable[[ProcessRecord], bool]
    """Called until it returns true; must return quickly and not raise."""
    settings: Mapping[str, str] = field(default_factory=dict)
    """Environment variables of this service only."""
    timeout_seconds: float = 240.0
    """On a machine with a core to spare; longer on a busy one."""

    def start(self, home: Home, project: Path, api_url: str) -> ProcessRecord:
        """Start the process in `project`. Raises `ServiceError` if its program cannot be started."""
        env = {**service_environment(home, api_url), **self.settings}
        try:
            return start_detached(self.command, log=home.log(self.name), cwd=project, env=env)
        except OSError as error:
            raise ServiceError(f"{self.label} could not be started: {error}") from error

    def wait(self, record: ProcessRecord) -> None:
        """Return once the service answers. Raises `ServiceError` naming the log if it ends first or takes too long."""
        began = time.monotonic()
        while not self.answers(record):
            if record.find() is None:
                raise ServiceError(
                    f"{self.label} ended while starting: {last_line(record.log)}; see {record.log}, fix that, "
                    "then run: crucible up"
                )
            if (waited := time.monotonic() - began) > self.timeout_seconds * _slowdown():
                raise ServiceError(
                    f"{self.label} did not answer within {waited:.0f} s; see {record.log}, "
                    "then run: crucible down && crucible up"
                )
            time.sleep(0.1)


def server(home: Home, api_url: str, database_url: str | None = None) -> Service:
    """The Prefect server: API, scheduler and UI in one process, on `database_url` or, by default, on SQLite."""
    port = httpx.URL(api_url).port
    assert port is not None
    command = (sys.executable, "-m", "crucible.local.server", "--host", HOST, "--port", str(port))
    return Service(
        "server",
        "Prefect server",
        command,
        # Another server may have taken the port while ours was starting; its answer does not count.
        lambda record: listens(record, port) and server_answers(api_url),
        {
            access.SERVER_SETTING: access.auth_string(home),
            **({database.SETTING: database_url} if database_url else {}),
        },
    )


def worker(home: Home, api_url: str) -> Service:
    """The worker of the `local` pool."""
    command = (
        *(sys.executable, "-m", "crucible.pools.local", "worker", "start"),
        *("--pool", POOL, "--type", POOL_TYPE, "--name", WORKER_NAME),
    )
    return Service("worker", "Worker", command, lambda record: worker_reports(home, api_url, record, POOL))


def watchdog() -> Service:
    """The process that restarts supervisors without a heartbeat and keeps the overview up to date."""
    command = (sys.executable, "-m", "crucible.supervision.watchdog", "crucible.local.overview")
    return Service("watchdog", "Watchdog", command, lambda record: record.find() is not None)


def companions(home: Home, api_url: str) -> list[Service]:
    """The services that run beside the server."""
    return [worker(home, api_url), watchdog()]


def service_environment(home: Home, api_url: str) -> dict[str, str]:
    """The environment of every service and, through the worker, of every flow run.

    A key, a profile or a home that belongs to another server must not leak in, and the database's password stays with
    the server.
    """
    made = environment(
        {
            **client_settings(home, api_url),
            "CRUCIBLE_HOME": str(home.root),
            "PREFECT_HOME": str(home.prefect),
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_UI_SHOW_PROMOTIONAL_CONTENT": "false",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            **_LOOP_SECONDS,
            # Lines wait for each other: at Prefect's two seconds, nearly each would be a request of its own.
            BATCH_SETTING: os.environ.get(BATCH_SETTING, "5"),
            # Flow runs import `flows`, `tasks` and `blocks`, which are not in the installed package.
            "PYTHONPATH": os.pathsep.join(filter(None, [str(PROJECT), os.environ.get("PYTHONPATH")])),
            "PYTHONUNBUFFERED": "1",
        },
        drop=(
            *("PREFECT_API_KEY", access.SERVER_SETTING, "PREFECT_PROFILE", "PREFECT_PROFILES_PATH"),
            *database.SECRET_SETTINGS,
        ),
    )
    bypass_proxies(made)
    return made


def client_settings(home: Home, api_url: str) -> dict[str, str]:
    """The Prefect settings with which any `prefect` command reaches this server."""
    return {
        "PREFECT_API_URL": api_url,
        access.CLIENT_SETTING: access.auth_string(home),
        # Without /v2 the links that Prefect prints open its older UI.
        "PREFECT_UI_URL": ui_url(api_url),
        # A heartbeat of a flow run is an event of 13 kB that stays for a week. Crucible asks the records in the store.
        "PREFECT_FLOWS_HEARTBEAT_FREQUENCY": "14400",
        "PREFECT_PLUGINS_ENABLED": "true",
        "PREFECT_PLUGINS_ALLOW": "crucible",
    }


def ui_url(api_url: str) -> str:
    return api_url.removesuffix("/api") + "/v2"


def server_answers(api_url: str) -> bool:
    try:
        return httpx.get(f"{api_url}/health", timeout=2, trust_env=False, verify=no_tls()).is_success
    except httpx.HTTPError:
        return False


def database_answers(api_url: str) -> bool:
    """Whether the server is there and reaches its database."""
    try:
        return httpx.get(f"{api_url}/ready", timeout=10, trust_env=False, verify=no_tls()).is_success
    except (httpx.HTTPError, httpx.InvalidURL):
        return False


def listens(record: ProcessRecord, port: int) -> bool:
    """Whether it is this process that accepts connections on the port."""
    process = record.find()
    if process is None:
        return False
    try:
        connections = process.net_connections("tcp")
    except psutil.NoSuchProcess:
        return False
    return any(open_.status == psutil.CONN_LISTEN and open_.laddr.port == port for open_ in connections)


def worker_reports(home: Home, api_url: str, record: ProcessRecord, pool: str) -> bool:
    """Whether the worker in this process has reported to the server."""
    process = record.find()
    # Asked of the operating system again: if the clock was set since the start, both times follow it.
    return process is not None and worker_answers(home, api_url, since=process.create_time(), pool=pool)


def worker_answers(home: Home, api_url: str, since: float, pool: str = POOL) -> bool:
    """Whether our worker has reported to the server after the unix time `since`."""
    try:
        with access.connect(home, api_url, seconds=5) as api:
            workers = api.post(f"/work_pools/{pool}/workers/filter", json={}).raise_for_status().json()
    except httpx.HTTPError:
        return False
    return any(
        worker["name"] == WORKER_NAME
        and worker["status"] == "ONLINE"
        and datetime.fromisoformat(worker["last_heartbeat_time"]).timestamp() >= since
        for worker in workers
    )


def free_port(first: int = DEFAULT_PORT) -> int:
    """The first port from `first` on that no process listens on. Raises `ServiceError` if there is none."""
    for port in range(first, LAST_PORT + 1):
        if is_free(port):
            return port
    raise ServiceError(f"no free port between {first} and {LAST_PORT} for the Prefect server; stop something first")


def is_free(port: int) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((HOST, port))
        except OSError:
            return False
        return True


def _slowdown() -> float:
    """How much longer a process takes now than on an idle machine, judged by the load: 1 to 5."""
    return min(5.0, max(1.0, os.getloadavg()[0] / (os.cpu_count() or 1)))


def last_line(log: Path) -> str:
    """The last line of a log with something in it, which for a crash names the error."""
    lines = [line.strip() for line in log.read_text(errors="replace").splitlines() if line.strip()]
    return lines[-1] if lines else "it printed nothing"
