"""How many jobs can one Prefect set-up take? `python -m benchmarks.team_size [--jobs 200] [--minutes 5]`

Starts PostgreSQL, Redis, two replicas of the server and one process with its services in a temporary folder, and lets
simulated jobs (`benchmarks.team_job`) ask for what real ones ask for: as often as after their first ten minutes, which
is most of a long training, or with `--lively` as often as at their beginning. After a third of the time a replica is
killed, after two thirds the database. At the end everything that the server acknowledged is compared with what the
database holds. Needs `apt install postgresql redis-server` and the extra `team`; stops everything and leaves nothing
behind.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import signal
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import asyncpg

from benchmarks.results import write_result
from benchmarks.team_job import Client, Seen, SimulatedJob, worker
from benchmarks.team_servers import TeamServers

POOL = "simulated"
JOBS_OF_A_WORKER = 50
TABLES = ("flow_run", "flow_run_state", "log", "artifact", "artifact_collection", "events", "event_resources")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=200, help="how many at the same time (default 200)")
    parser.add_argument("--minutes", type=float, default=5.0, help="how long each one runs (default 5)")
    parser.add_argument("--replicas", type=int, default=2)
    parser.add_argument("--ramp", type=float, default=60.0, help="seconds over which they start (default 60)")
    parser.add_argument("--lively", action="store_true", help="as in a job's first ten minutes, not as later")
    parser.add_argument("--calm", action="store_true", help="kill nothing")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that everything is stopped and removed then, too
    with tempfile.TemporaryDirectory(prefix="crucible-team-", ignore_cleanup_errors=True) as folder:
        say("starting PostgreSQL, Redis, the replicas and the services")
        with TeamServers(Path(folder), options.replicas) as servers:
            figures = asyncio.run(measure(servers, options))
    print(json.dumps(figures, indent=2))
    if options.jobs >= 200 and options.minutes >= 5:
        write_result("team_size_lively" if options.lively else "team_size", figures)
    if figures["lost"]:
        sys.exit("state was lost")


async def measure(servers: TeamServers, options: argparse.Namespace) -> dict[str, Any]:
    """Run all jobs, disturb the servers meanwhile, look for what is missing."""
    seen = Seen()
    setup = Client(servers.urls, Seen())
    await setup.ask("POST", "/work_pools/", {"name": POOL, "type": "process"})
    flow = await setup.ask("POST", "/flows/", {"name": "simulated"})
    # Without a schedule and with nobody who takes its runs: each job sets its states itself.
    deployment = await setup.ask("POST", "/deployments/", {"name": "simulated", "flow_id": flow["id"]})
    clients = [Client(servers.urls, seen, first=number) for number in range(options.jobs)]
    jobs = [SimulatedJob(client, deployment, number, lively=options.lively) for number, client in enumerate(clients)]
    seconds = options.minutes * 60
    size, cpu, began = await table_sizes(servers), servers.cpu_seconds(), time.monotonic()

    async def one(job: SimulatedJob) -> None:
        await asyncio.sleep(random.uniform(0, options.ramp))
        await job.run(seconds)

    async with asyncio.TaskGroup() as group:
        for job in jobs:
            group.create_task(one(job))
        for number in range(-(-options.jobs // JOBS_OF_A_WORKER)):
            group.create_task(worker(clients[number], POOL, f"worker-{number}", seconds + options.ramp))
        if not options.calm:
            group.create_task(disturb(servers, options.ramp + seconds))
    took = time.monotonic() - began
    used = {kind: round(now - cpu.get(kind, 0.0), 1) for kind, now in servers.cpu_seconds().items()}
    grown = {name: round((now - size[name]) / 2**20, 2) for name, now in (await table_sizes(servers)).items()}
    lost = await missing(servers, jobs)
    for client in [setup, *clients]:
        await client.close()
    job_minutes = options.jobs * options.minutes
    ordered = sorted(seen.seconds)
    return {
        "jobs": options.jobs,
        "minutes": options.minutes,
        "rates": "first ten minutes of a job" if options.lively else "after a job's first ten minutes",
        "replicas": options.replicas,
        "killed": [] if options.calm else ["a replica", "the database"],
        "lost": lost,
        "requests": len(ordered),
        "requests_per_second": round(len(ordered) / took, 1),
        "requests_per_job_minute": round(len(ordered) / job_minutes, 1),
        "events_per_job_minute": round(seen.events / job_minutes, 1),
        "median_seconds": round(statistics.median(ordered), 3),
        "p95_seconds": round(ordered[int(0.95 * len(ordered))], 3),
        "p99_seconds": round(ordered[int(0.99 * len(ordered))], 3),
        "longest_with_retries_seconds": round(seen.longest_seconds, 1),
        "asked_again": dict(seen.problems),
        "cpu_seconds": used,
        "cores_used": round(sum(used.values()) / took, 2),
        "cpu_ms_per_request": round(1000 * sum(used.values()) / len(ordered), 1),
        "memory_mib": servers.memory_mib(),
        "database_growth_mib": grown,
        "database_kib_per_job_minute": round(1024 * grown["all"] / job_minutes, 1),
        "kinds": dict(seen.kinds.most_common()),
    }


async def disturb(servers: TeamServers, seconds: float) -> None:
    """Kill a replica after a third of the time and start it again, and the database after two thirds."""

    async def replica() -> None:
        await asyncio.sleep(seconds / 3)
        say("killing a replica")
        await asyncio.to_thread(servers.kill_replica, len(servers.urls) - 1)
        await asyncio.sleep(5)
        await asyncio.to_thread(servers.start_replica, len(servers.urls) - 1)
        say("the replica is back")

    async def database() -> None:
        await asyncio.sleep(seconds * 2 / 3)
        say("killing the database")
        await asyncio.to_thread(servers.kill_database)
        say("the database is back")

    async with asyncio.TaskGroup() as group:
        group.create_task(replica())
        group.create_task(database())


async def table_sizes(servers: TeamServers) -> dict[str, int]:
    """Bytes on disk of the largest tables with their indexes, and of the whole database."""
    connection = await asyncpg.connect(user="prefect", database="postgres", host=str(servers.folder / "postgres"))
    try:
        sizes = {name: await connection.fetchval("select pg_total_relation_size($1::text)", name) for name in TABLES}
        return {**sizes, "all": await connection.fetchval("select pg_database_size('postgres')")}
    finally:
        await connection.close()


async def missing(servers: TeamServers, jobs: list[SimulatedJob]) -> dict[str, int]:
    """What was acknowledged and is not in the database; empty if nothing is lost."""
    connection = await asyncpg.connect(user="prefect", database="postgres", host=str(servers.folder / "postgres"))
    try:
        completed = await connection.fetchval("select count(*) from flow_run where state_type = 'COMPLETED'")
        states = await connection.fetchval("select count(*) from flow_run_state")
        lines = await connection.fetchval("select count(*) from log")
        rows = await connection.fetch("select id, data from artifact where type = 'progress'")
    finally:
        await connection.close()
    shown = {str(row["id"]): float(json.loads(row["data"])) for row in rows}
    found = {
        "completed runs": sum(len(job.runs) for job in jobs) - completed,
        "states": sum(job.states for job in jobs) - states,
        "log lines": sum(job.lines for job in jobs) - lines,
        "progress": sum(shown.get(job.progress, -1.0) < job.percent - 1e-9 for job in jobs),
    }
    return {name: count for name, count in found.items() if count > 0}


def say(text: str) -> None:
    print(f"{time.strftime('%H:%M:%S')} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()
