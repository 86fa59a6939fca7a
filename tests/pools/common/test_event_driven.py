"""Workers react to scheduled flow runs: the one here would poll once an hour.

Its pool has the type `process`, which earlier versions gave to the pool `local`.
"""

from __future__ import annotations

import subprocess
import sys
import time
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.states import AwaitingRetry
from prefect.workers.process import ProcessWorker

POOL = "woken"
PATIENCE_SECONDS = 180.0


@pytest.fixture(scope="module")
def client(prefect_server: Any) -> Iterator[SyncPrefectClient]:
    template = ProcessWorker.get_default_base_job_template()
    prefect_server.create_pool(POOL, base_job_template=template)
    with temporary_settings({PREFECT_API_URL: prefect_server.api_url}), get_client(sync_client=True) as client:
        yield client


@pytest.fixture(scope="module")
def log(prefect_server: Any, client: SyncPrefectClient, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """The log of a running worker."""
    path = tmp_path_factory.mktemp("woken") / "worker.log"
    command = [
        sys.executable,
        "-m",
        "crucible.pools.local",
        "worker",
        "start",
        "--type",
        "crucible-local",
        "--pool",
        POOL,
    ]
    with path.open("wb") as output:
        worker = subprocess.Popen(
            command,
            env={**prefect_server.env, "PREFECT_WORKER_QUERY_SECONDS": "3600"},
            stdout=output,
            stderr=subprocess.STDOUT,
        )
    yield path
    worker.terminate()
    worker.wait(PATIENCE_SECONDS)


def submit(client: SyncPrefectClient) -> FlowRun:
    """A run whose process does nothing."""
    deployment = client.create_deployment(
        flow_id=client.create_flow_from_name("woken"),
        name=f"test-{uuid.uuid4().hex[:8]}",
        work_pool_name=POOL,
        job_variables={"command": "true"},
    )
    return client.create_flow_run_from_deployment(deployment)


def wait_until_taken_up(client: SyncPrefectClient, run: FlowRun, log: Path, before: str | None = None) -> str:
    """Wait for a process of the run, another one than `before`; returns its id."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while (pid := client.read_flow_run(run.id).infrastructure_pid) in (None, before):
        assert time.monotonic() < deadline, log.read_text()[-4000:]
        time.sleep(0.1)
    assert pid is not None
    return pid


def test_runs_are_taken_up_when_they_are_scheduled_also_again(client: SyncPrefectClient, log: Path) -> None:
    runs = [submit(client) for _ in range(3)]
    pids = [wait_until_taken_up(client, run, log) for run in runs]
    policy = runs[0].empirical_policy.model_copy(update={"retry_type": "reschedule"})
    client.update_flow_run(runs[0].id, empirical_policy=policy)
    client.set_flow_run_state(runs[0].id, AwaitingRetry(), force=True)
    wait_until_taken_up(client, runs[0], log, before=pids[0])
