"""What the worker of the `local` pool starts."""

from __future__ import annotations

import sys
from uuid import uuid4

from prefect.client.schemas.objects import FlowRun

from crucible.pools.local.worker import LocalJobConfiguration


def prepared(**settings: str) -> LocalJobConfiguration:
    configuration = LocalJobConfiguration(**settings)
    configuration.prepare_for_flow_run(FlowRun(flow_id=uuid4()))
    return configuration


def test_a_flow_run_is_the_engine_itself_and_no_workspace_is_prepared_for_it() -> None:
    assert prepared().command == f"{sys.executable} -m prefect.engine"
    assert prepared()._command_configured


def test_a_command_of_the_deployments_own_stays() -> None:
    assert prepared(command="python my_engine.py").command == "python my_engine.py"
