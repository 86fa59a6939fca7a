"""What does one supervising process take? `python -m benchmarks.supervisor_memory [--sizes 1 2 4]`

Starts a server and a worker of its own, pauses the queue of attempts, and lets so many jobs wait for their attempt:
each has a supervising process of its own. Prints, for each number, the memory that would be free without these
processes (pages that they share are counted once) and their CPU time per minute. Memory decides how many jobs one box
supervises.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from pathlib import Path
from typing import Any

import psutil
from prefect.client.orchestration import SyncPrefectClient, get_client

from benchmarks.hundred_jobs import PARAMETERS
from benchmarks.results import write_result
from crucible.local.access import prefect_settings
from crucible.local.services import POOL
from crucible.rehearsal.drill.stage import Stage, local_stage
from crucible.supervision.heartbeat import supervisor_heartbeats

START_SECONDS = 900.0
WATCH_SECONDS = 30.0


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--sizes", type=int, nargs="+", default=[1, 2, 4], help="numbers of supervisors (default 1 2 4)"
    )
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="crucible-bench-", ignore_cleanup_errors=True) as folder,
        local_stage(Path(folder)) as stage,
        prefect_settings(stage.home),
        get_client(sync_client=True) as client,
    ):
        figures = measure(stage, client, sorted(options.sizes))
    print(json.dumps(figures, indent=2))
    if len(figures) >= 3:
        write_result("supervisor_memory", {str(count): seen for count, seen in figures.items()})


def measure(stage: Stage, client: SyncPrefectClient, sizes: list[int]) -> dict[int, dict[str, Any]]:
    """For each number of supervisors, what they take together."""
    client.update_work_queue(client.read_work_queue_by_name("attempts", POOL).id, is_paused=True)
    client.update_work_queue(client.read_work_queue_by_name("supervisors", POOL).id, concurrency_limit=max(sizes))
    deployment = client.read_deployment_by_name("train-nanogpt/train-nanogpt").id
    figures, started = {}, 0
    for size in sizes:
        for number in range(started, size):
            client.create_flow_run_from_deployment(deployment, parameters={**PARAMETERS, "job": f"waits-{number:03d}"})
        started = size
        end = time.monotonic() + START_SECONDS
        while len(waiting(stage)) < size:
            if time.monotonic() > end:
                raise TimeoutError(f"{len(waiting(stage))} of {size} supervisors are there")
            time.sleep(1.0)
        figures[size] = look(stage)
    return figures


def waiting(stage: Stage) -> set[str]:
    """The jobs whose supervising process is there and has launched an attempt, which waits."""
    heartbeats = supervisor_heartbeats(stage.store)
    return {beat.subject for beat in heartbeats if stage.store.exists(f"jobs/{beat.subject}/attempts/0001/launch.json")}


def look(stage: Stage) -> dict[str, Any]:
    """Memory and CPU time of the supervising processes."""
    found = supervisors(stage)
    before = sum(sum(process.cpu_times()[:2]) for process in found)
    time.sleep(WATCH_SECONDS)
    used = sum(sum(process.cpu_times()[:2]) for process in found) - before
    memory = [process.memory_full_info() for process in found]
    return {
        "processes": len(found),
        "mib_each": round(sum(getattr(info, "pss", info.uss) for info in memory) / len(found) / 2**20, 1),
        "resident_mib_each": round(sum(info.rss for info in memory) / len(found) / 2**20, 1),
        "cpu_seconds_per_minute_each": round(used / len(found) * 60 / WATCH_SECONDS, 2),
    }


def supervisors(stage: Stage) -> list[psutil.Process]:
    """The processes of flow runs; the engine that is loaded in advance has no flow run yet."""
    runs = []
    for process in psutil.process_iter(["cmdline", "environ"]):
        environment, words = process.info["environ"] or {}, process.info["cmdline"] or []
        ours = environment.get("CRUCIBLE_HOME") == str(stage.home.root)
        if ours and {"prefect.engine", "crucible.pools.local.engine"} & set(words):
            runs.append(process)
    return sorted(runs, key=lambda process: process.create_time())[:-1]


if __name__ == "__main__":
    main()
