"""A flow run ends in the state that the flow chooses, without an error in its log."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import UUID

from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings

from crucible.local.state import PROJECT

if TYPE_CHECKING:
    from tests.conftest import PrefectServer

FLOW = """
from prefect import flow
from prefect.states import Cancelled
from tasks.ending import end_as

@flow
def stop():
    return end_as(Cancelled(name="BudgetStop", message="the cap is reached"))
"""


def test_the_run_has_the_chosen_state_and_its_process_ends_quietly(
    prefect_server: PrefectServer, tmp_path: Path
) -> None:
    (tmp_path / "stop.py").write_text(FLOW)
    with temporary_settings({PREFECT_API_URL: prefect_server.api_url}), get_client(sync_client=True) as client:
        deployment = client.create_deployment(
            flow_id=client.create_flow_from_name("stop"), name="stop", entrypoint="stop.py:stop", path=str(tmp_path)
        )
        run = client.create_flow_run_from_deployment(deployment)
        done = subprocess.run(
            [sys.executable, "-m", "prefect.engine", str(UUID(str(run.id)))],
            cwd=tmp_path,
            env={**prefect_server.env, "PYTHONPATH": str(PROJECT)},
            capture_output=True,
            text=True,
            check=False,
        )
        state = client.read_flow_run(run.id).state
    assert state is not None
    assert (state.name, state.message) == ("BudgetStop", "the cap is reached")
    assert done.returncode == 0
    assert "Traceback" not in done.stdout + done.stderr
