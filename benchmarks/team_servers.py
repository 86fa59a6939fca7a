"""Prefect as a team runs it: PostgreSQL, Redis, replicas of the API and one process with the services, on this box.

Prefect's own way of scaling: replicas share the database, and Redis (`prefect-redis`) carries events between them.
Every process ends with the one that started it, and everything is in one temporary folder.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import httpx
import psutil

from benchmarks.postgres import Postgres, find_binaries
from benchmarks.server_database import free_port, memory_mib
from crucible.local import access_log
from crucible.parent_death_guard import guarded

START_SECONDS = 600.0
"""A first start makes the database's tables; on a busy machine that takes its time."""


class TeamServers:
    """`with TeamServers(folder, replicas=2) as servers:` all of it, up and answering."""

    def __init__(self, folder: Path, replicas: int = 2, *, access_log: bool = False) -> None:
        self.folder = folder
        self.ports = [free_port() for _ in range(replicas)]
        self._access_log = access_log
        self._processes: dict[str, subprocess.Popen[bytes]] = {}
        self._cpu_of_the_dead: dict[str, float] = {}

    def __enter__(self) -> TeamServers:
        binaries, redis = find_binaries(), shutil.which("redis-server")
        if not binaries or redis is None or find_spec("prefect_redis") is None:
            raise SystemExit(
                "this needs PostgreSQL, Redis and prefect-redis: apt install postgresql redis-server, "
                "pip install -c constraints.txt -e '.[team]'"
            )
        database = self.folder / "postgres"
        database.mkdir()
        self.folder.chmod(0o711)  # PostgreSQL may run as another user
        self.database = Postgres(binaries[0], database, "-c", "max_connections=200")
        self._redis_port = free_port()
        command = [redis, "--port", str(self._redis_port), "--bind", "127.0.0.1", "--save", "", "--dir", self.folder]
        self._start("redis", [str(word) for word in command])
        prefect = [sys.executable, "-m", "prefect", "server"]
        self._run([*prefect, "database", "upgrade", "-y"])
        self.start_replica(
            0
        )  # alone: on an empty database each would register Prefect's own blocks, and all but one fail
        for number in range(1, len(self.ports)):
            self.start_replica(number, wait=False)
        self._start("services", [*prefect, "services", "start"])
        for number in range(1, len(self.ports)):
            self.wait_for(number)
        return self

    def __exit__(self, *exc_info: object) -> None:
        for process in reversed(self._processes.values()):
            process.terminate()
        for process in self._processes.values():
            try:
                process.wait(20)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self.database.stop()

    @property
    def urls(self) -> list[str]:
        """The API of each replica."""
        return [f"http://127.0.0.1:{port}/api" for port in self.ports]

    def log(self, name: str) -> Path:
        """What a process printed: `replica-0`, `services`, `redis`."""
        return self.folder / f"{name}.log"

    def start_replica(self, number: int, *, wait: bool = True) -> None:
        command = [sys.executable, "-m", "crucible.local.server", "--no-services", "--port", str(self.ports[number])]
        self._start(f"replica-{number}", command)
        if wait:
            self.wait_for(number)

    def kill_replica(self, number: int) -> None:
        """SIGKILL: no connection is closed properly, no request is answered any more."""
        guard = self._processes.pop(f"replica-{number}")
        self._cpu_of_the_dead["replica"] = self._cpu_of_the_dead.get("replica", 0.0) + _cpu_seconds(guard.pid)
        guard.kill()  # what it guards ends with it
        guard.wait()

    def kill_database(self) -> None:
        """SIGKILL to its main process, and a start from what is on the disk."""
        self._cpu_of_the_dead["postgres"] = self._cpu_of_the_dead.get("postgres", 0.0) + _cpu_seconds(
            self.database.process.pid
        )
        self.database.kill()
        self.database.restart()

    def wait_for(self, number: int) -> None:
        """Until a replica answers. Raises `RuntimeError` with the end of its log if it does not."""
        end = time.monotonic() + START_SECONDS
        while not _answers(self.urls[number]):
            ended = self._processes[f"replica-{number}"].poll() is not None
            if ended or time.monotonic() > end:
                text = self.log(f"replica-{number}").read_text(errors="replace")
                raise RuntimeError(f"replica {number} {'ended' if ended else 'does not answer'}: {text[-2000:]}")
            time.sleep(0.2)

    def cpu_seconds(self) -> dict[str, float]:
        """CPU time so far: of all replicas, the services, Redis, and the database."""
        seen = dict(self._cpu_of_the_dead)
        for name, process in [*self._processes.items(), ("postgres", self.database.process)]:
            kind = name.partition("-")[0]
            seen[kind] = seen.get(kind, 0.0) + _cpu_seconds(process.pid)
        return {kind: round(seconds, 2) for kind, seconds in seen.items()}

    def memory_mib(self) -> dict[str, int]:
        """Memory that would be free without each process."""
        every = [*self._processes.items(), ("postgres", self.database.process)]
        return {name: round(memory_mib([process.pid])) for name, process in every}

    def environment(self) -> dict[str, str]:
        """The settings of every server process."""
        kept = {key: value for key, value in os.environ.items() if not key.startswith(("PREFECT_", "CRUCIBLE_"))}
        redis = f"redis://127.0.0.1:{self._redis_port}"
        return kept | {
            "PREFECT_HOME": str(self.folder / "prefect"),
            "PREFECT_PROFILES_PATH": str(self.folder / "prefect" / "profiles.toml"),
            "PREFECT_SERVER_DATABASE_CONNECTION_URL": self.database.url,
            "PREFECT_SERVER_DATABASE_MIGRATE_ON_START": "false",
            "PREFECT_SERVER_EVENTS_MESSAGING_BROKER": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_MESSAGING_CACHE": "prefect_redis.messaging",
            "PREFECT_SERVER_EVENTS_CAUSAL_ORDERING": "prefect_redis.ordering",
            "PREFECT_SERVER_CONCURRENCY_LEASE_STORAGE": "prefect_redis.lease_storage",
            "PREFECT_REDIS_MESSAGING_URL": f"{redis}/0",
            "PREFECT_SERVER_DOCKET_URL": f"{redis}/1",
            "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
            "PREFECT_SERVER_LOGGING_LEVEL": "WARNING",
            **({access_log.SETTING: "1"} if self._access_log else {}),
        }

    def _start(self, name: str, command: list[str]) -> None:
        with self.log(name).open("ab") as output:
            self._processes[name] = subprocess.Popen(
                guarded(command), env=self.environment(), stdout=output, stderr=output, start_new_session=True
            )

    def _run(self, command: list[str]) -> None:
        done = subprocess.run(command, env=self.environment(), capture_output=True, text=True, check=False)
        if done.returncode:
            raise RuntimeError(f"{' '.join(command)} ended with {done.returncode}: {done.stdout}{done.stderr}")


def _cpu_seconds(pid: int) -> float:
    """Of a process, its descendants, and those that have ended."""
    root = psutil.Process(pid)
    return sum(sum(process.cpu_times()[:4]) for process in [root, *root.children(recursive=True)])


def _answers(url: str) -> bool:
    try:
        return httpx.get(f"{url}/ready", timeout=5, trust_env=False).is_success
    except httpx.HTTPError:
        return False
