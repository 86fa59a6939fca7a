"""The simulated job of `benchmarks.team_size` asks the server for what a real one asks for."""

from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.hundred_jobs import PARAMETERS, submit, wait_for
from benchmarks.team_job import SIMULATED, kind_of
from crucible.local import access_log
from crucible.local.access import prefect_settings
from crucible.rehearsal.drill.stage import local_stage

ONCE = (
    "GET /csrf-token",
    "GET /health",
    "GET /ready",
    "GET /admin/",
    "GET /block_",
    "GET /deployments/name/",
    "GET /variables/",
    "GET /work_pools/",
    "GET /work_queues/",
    "GET /artifacts/",
    "PATCH /work_queues/",
    "POST /artifacts/filter",
    "POST /block_",
    "POST /deployments",
    "POST /flow_runs",
    "POST /flows",
    "POST /task_runs",
    "POST /variables",
    "POST /v2/concurrency_limits/",
    "POST /work_pools",
    "POST /automations/",
    "PATCH /deployments/",
    "PATCH /variables/",
    "DELETE /artifacts/",
    "DELETE /automations/",
    "EVENT prefect.block.",
    "EVENT prefect.worker.",
    "EVENT prefect.task-run.",
    "EVENT prefect.flow-run.",
    "EVENT crucible.",
)
"""Beginnings of what is asked once for each process, deployment, attempt or look of a watchdog."""


def kinds_in(log: Path) -> set[str]:
    """What an access log has, without ids."""
    lines = [line.split() for line in log.read_text(errors="replace").splitlines() if line.startswith("access ")]
    return {f"EVENT {line[3]}" if line[2] == "EVENT" else f"{line[2]} {kind_of(line[3])}" for line in lines}


def test_kinds_have_no_ids() -> None:
    run = "01a223e9-951f-7ac2-b518-817cc05a1e5f"
    assert kind_of(f"/api/flow_runs/{run}/set_state") == "/flow_runs/{}/set_state"
    assert kind_of("/api/work_pools/local/get_scheduled_flow_runs") == "/work_pools/{}/get_scheduled_flow_runs"
    assert kind_of("/api/logs/") == "/logs"


@pytest.mark.slow
def test_a_real_job_asks_for_what_the_simulated_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from prefect.client.orchestration import get_client

    monkeypatch.setenv(access_log.SETTING, "1")
    assert PARAMETERS["preset"] == "debug"
    with local_stage(tmp_path) as stage, prefect_settings(stage.home), get_client(sync_client=True) as client:
        assert wait_for(client, submit(client, 1)) == {"Completed": 1}
        real = kinds_in(stage.home.log("server"))
    assert {kind for kind in real - SIMULATED if not kind.startswith(ONCE)} == set(), "let the simulation do it, too"
    assert SIMULATED - real <= {"POST /work_pools/{}/workers/heartbeat"}, "Prefect sends it through a WebSocket now"
