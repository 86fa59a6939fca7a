"""A hundred small trainings at once, two at a time: `python -m benchmarks.hundred_jobs [--jobs N] [--slots N]`.

Submits all of them to a server and worker of their own and waits for the last. Prints how many completed, the time each
took of the whole, and the memory of everything that ran: server, worker, supervisors, agents and trainers. Memory is
bounded if a hundred need about as much as thirty: supervisors beyond their queue's limit wait as flow runs, which are
rows of the database and no processes.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import threading
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any
from uuid import UUID

import psutil
from httpx import TransportError
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import (
    FlowRunFilter,
    FlowRunFilterId,
    FlowRunFilterState,
    FlowRunFilterStateType,
)
from prefect.client.schemas.objects import TERMINAL_STATES, FlowRun

from benchmarks.results import write_result
from crucible.jobs.job import Job
from crucible.jobs.status import JobState, status_of
from crucible.local.access import prefect_settings
from crucible.local.services import POOL
from crucible.rehearsal.drill.stage import Stage, local_stage

PARAMETERS = {
    "preset": "debug",
    "config": {"n_layer": 1, "n_head": 1, "n_embd": 16, "block_size": 16, "batch_size": 2, "max_iters": 20},
    "dataset": {"source": "python-stdlib", "max_bytes": 100_000},
    "run_evaluation": False,
}
SAMPLE_SECONDS = 3.0
STANDSTILL_SECONDS = 900.0
KINDS = {
    "crucible.local.server": "server",
    "crucible.training": "trainer",
    "prefect.engine": "flow run",
    "crucible.pools.local.engine": "flow run",
    "crucible.pools.local": "worker",
    "crucible.supervision.watchdog": "watchdog",
    "crucible.supervision.restarter": "watchdog",
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=100, help="how many trainings (default 100)")
    parser.add_argument("--slots", type=int, default=2, help="how many attempts at a time (default 2)")
    options = parser.parse_args()
    with (
        tempfile.TemporaryDirectory(prefix="crucible-bench-", ignore_cleanup_errors=True) as folder,
        local_stage(Path(folder)) as stage,
        prefect_settings(stage.home),
    ):
        result = measure(stage, options.jobs, options.slots)
    print(json.dumps(result, indent=2))
    write_result("hundred_jobs", result)


def measure(stage: Stage, jobs: int, slots: int) -> dict[str, Any]:
    """Submit all, wait for all, and watch the memory meanwhile."""
    memory = Memory(stage.home.root)
    before = memory.look()
    with get_client(sync_client=True) as client:
        client.update_work_queue(client.read_work_queue_by_name("attempts", POOL).id, concurrency_limit=slots)
        supervisors = client.read_work_queue_by_name("supervisors", POOL).concurrency_limit
        began = time.monotonic()
        runs = submit(client, jobs)
        submitted = time.monotonic() - began
        with memory:
            states = wait_for(client, runs)
        seconds = time.monotonic() - began
    found = [status_of(Job(stage.store, f"small-{number:03d}")) for number in range(jobs)]
    return {
        "jobs": jobs,
        "slots": slots,
        "supervisors_at_once": supervisors,
        "completed": sum(status is not None and status.state is JobState.COMPLETED for status in found),
        "flow_run_states": dict(states),
        "seconds": round(seconds, 1),
        "seconds_per_job": round(seconds / jobs, 2),
        "submit_seconds": round(submitted, 1),
        "idle_mib": before,
        "peak_mib": memory.peak_mib,
        "peak_mib_by_kind": memory.at_peak,
        "most_processes": memory.most_processes,
    }


def submit(client: SyncPrefectClient, jobs: int) -> list[FlowRun]:
    """All trainings, one after the other, as fast as the server takes them."""
    deployment = client.read_deployment_by_name("train-nanogpt/train-nanogpt")
    return [
        client.create_flow_run_from_deployment(deployment.id, parameters={**PARAMETERS, "job": f"small-{number:03d}"})
        for number in range(jobs)
    ]


def wait_for(client: SyncPrefectClient, runs: list[FlowRun]) -> Counter[str]:
    """The names of the final states. Raises `TimeoutError` when no run ends for `STANDSTILL_SECONDS`."""
    open_runs, ended = {run.id for run in runs}, Counter[str]()
    last_end = time.monotonic()
    while open_runs:
        with suppress(TransportError):  # a server that is slow to answer here is asked again
            for run in final_runs(client, open_runs):
                open_runs.remove(run.id)
                ended[run.state_name or ""] += 1
                last_end = time.monotonic()
        if time.monotonic() - last_end > STANDSTILL_SECONDS:
            raise TimeoutError(f"{len(open_runs)} runs are open, and none has ended for {STANDSTILL_SECONDS:.0f} s")
        time.sleep(SAMPLE_SECONDS)
    return ended


def final_runs(client: SyncPrefectClient, of: set[UUID]) -> list[FlowRun]:
    """Those that have ended, in one request: asking for each would keep the server busier than the jobs do."""
    return client.read_flow_runs(
        flow_run_filter=FlowRunFilter(
            id=FlowRunFilterId(any_=sorted(of)),
            state=FlowRunFilterState(type=FlowRunFilterStateType(any_=sorted(TERMINAL_STATES))),
        )
    )


class Memory:
    """`with Memory(home) as memory:` looks every few seconds at what the processes of a set-up hold, in MiB."""

    def __init__(self, home: Path) -> None:
        self._home, self._over = str(home), threading.Event()
        self.peak_mib = 0
        self.at_peak: dict[str, int] = {}
        self.most_processes: dict[str, int] = {}

    def __enter__(self) -> Memory:
        self._thread = threading.Thread(target=self._watch, daemon=True)
        self._thread.start()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._over.set()
        self._thread.join()

    def look(self) -> int:
        """The resident memory of all processes of this set-up, shared pages counted once for each process."""
        mib, count = Counter[str](), Counter[str]()
        for process in psutil.process_iter(["cmdline", "environ", "memory_info"]):
            if (process.info["environ"] or {}).get("CRUCIBLE_HOME") != self._home:
                continue
            words = process.info["cmdline"] or []
            kind = next((name for module, name in KINDS.items() if module in words), "other")
            mib[kind] += round(process.info["memory_info"].rss / 2**20)
            count[kind] += 1
        for name, number in count.items():
            self.most_processes[name] = max(self.most_processes.get(name, 0), number)
        if mib.total() > self.peak_mib:
            self.peak_mib, self.at_peak = mib.total(), dict(mib)
        return mib.total()

    def _watch(self) -> None:
        while not self._over.wait(SAMPLE_SECONDS):
            self.look()


if __name__ == "__main__":
    main()
