"""How much a row of each kind, and an artifact that is updated again and again, adds to Prefect's SQLite database.

    python -m benchmarks.database_growth

On a server of its own in a temporary folder. `tests/tasks/test_database_growth.py` counts the rows of four days of
training with the figures from here.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import sqlite3
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import httpx

from benchmarks.results import write_result
from benchmarks.server_database import CRUCIBLE, answers, free_port

LOGS, EVENTS, UPDATES = 2000, 1000, 200
LINE = "step 12340: loss 2.3456, 123,456 tokens/s"
PAGE_BYTES = 60_000


@contextlib.contextmanager
def server(home: Path) -> Iterator[str]:
    """A server on an empty database in `home`; its API's address."""
    port = free_port()
    api_url = f"http://127.0.0.1:{port}/api"
    kept = {key: value for key, value in os.environ.items() if not key.startswith("PREFECT_")}
    settings = {"PREFECT_HOME": str(home), "PREFECT_SERVER_ANALYTICS_ENABLED": "false", "PREFECT_API_URL": api_url}
    with (home / "server.log").open("wb") as log:
        command = [*CRUCIBLE, "--host", "127.0.0.1", "--port", str(port)]
        process = subprocess.Popen(command, env=kept | settings, stdout=log, stderr=log)
    try:
        while not answers(api_url):
            if process.poll() is not None:
                raise RuntimeError((home / "server.log").read_text()[-2000:])
            time.sleep(0.1)
        yield api_url
    finally:
        process.terminate()
        process.wait(30)


def used_bytes(database: Path) -> int:
    """What is in use, free pages left out: they are filled before the file grows."""
    with contextlib.closing(sqlite3.connect(database)) as connection:
        size, count, free = (
            connection.execute(f"PRAGMA {name}").fetchone()[0] for name in ("page_size", "page_count", "freelist_count")
        )
    return int(size * (count - free))


def growth(database: Path, write: Callable[[], None], table: str, expected: int) -> int:
    """Bytes that `write` adds, once the server has put all its rows into `table`."""

    def rows() -> int:
        with contextlib.closing(sqlite3.connect(database)) as connection:
            return int(connection.execute(f"SELECT count(*) FROM {table}").fetchone()[0])

    before, there = used_bytes(database), rows()
    write()
    while rows() < there + expected:
        time.sleep(0.2)
    return used_bytes(database) - before


def measure(api: httpx.Client, database: Path) -> dict[str, Any]:
    """Bytes a log line, an event as a flow run sends it, and an artifact's updates."""
    flow = api.post("/flows/", json={"name": "bench"}).raise_for_status().json()["id"]
    run = api.post("/flow_runs/", json={"flow_id": flow, "state": {"type": "RUNNING"}}).raise_for_status().json()["id"]

    def send_logs() -> None:
        line = {"name": "prefect.flow_runs", "level": 20, "message": LINE, "flow_run_id": run}
        for _ in range(LOGS // 200):
            api.post("/logs/", json=[{**line, "timestamp": _now()} for _ in range(200)]).raise_for_status()

    def send_events() -> None:
        related = [
            {
                "prefect.resource.id": f"prefect.{kind}.{uuid4()}",
                "prefect.resource.role": kind,
            }
            for kind in ("flow-run", "flow", "deployment", "work-queue", "work-pool", "tag", "tag", "tag", "tag")
        ]
        for _ in range(EVENTS // 100):
            events = [
                {
                    "id": str(uuid4()),
                    "event": "crucible.commit",
                    "occurred": _now(),
                    "resource": {"prefect.resource.id": "crucible.job.long", "prefect.resource.name": "long"},
                    "related": related,
                    "payload": {"message": LINE, "step": 1, "bytes": 2, "seconds": 3.0, "attempt": 1},
                }
                for _ in range(100)
            ]
            api.post("/events", json=events).raise_for_status()

    def update_artifact() -> None:
        new = {"key": "job-long", "type": "markdown", "data": "x" * PAGE_BYTES, "flow_run_id": run}
        made = api.post("/artifacts/", json=new).raise_for_status().json()["id"]
        for number in range(UPDATES):
            page = {"data": f"{number} " + "x" * PAGE_BYTES}
            api.patch(f"/artifacts/{made}", json=page).raise_for_status()

    logs = growth(database, send_logs, "log", LOGS)
    events = growth(database, send_events, "events", EVENTS)
    artifact = growth(database, update_artifact, "artifact", 1)
    return {
        "bytes_per_log_line_besides_its_text": round(logs / LOGS - len(LINE)),
        "bytes_per_event": round(events / EVENTS),
        f"bytes_after_{UPDATES}_updates_of_a_page_of_{PAGE_BYTES}_bytes": artifact,
    }


def _now() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())


def main() -> None:
    """Measure, print, and write the result."""
    argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter).parse_args()
    with tempfile.TemporaryDirectory(prefix="crucible-bench-") as folder:
        home = Path(folder)
        with server(home) as api_url, httpx.Client(base_url=api_url, timeout=180, trust_env=False) as api:
            figures = measure(api, home / "prefect.db")
    for name, value in figures.items():
        print(f"{name.replace('_', ' '):60} {value:>12,}")
    write_result("database_growth", figures)


if __name__ == "__main__":
    main()
