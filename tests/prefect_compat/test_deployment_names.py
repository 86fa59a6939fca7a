"""Bare deployment names in Prefect's own commands, and Prefect left alone wherever that cannot work."""

from __future__ import annotations

import logging
import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

if TYPE_CHECKING:
    from tests.conftest import PrefectServer

FLOWS = """
from prefect import flow

@flow
def bake(): ...

@flow
def fry(): ...
"""
DEPLOYMENTS = """
deployments:
  - {name: only-bread, entrypoint: "kitchen.py:bake", work_pool: {name: kitchen}}
  - {name: both, entrypoint: "kitchen.py:bake", work_pool: {name: kitchen}}
  - {name: both, entrypoint: "kitchen.py:fry", work_pool: {name: kitchen}}
"""


@pytest.fixture(scope="module")
def kitchen(prefect_server: PrefectServer, tmp_path_factory: pytest.TempPathFactory) -> PrefectServer:
    """The shared server with one deployment of a unique name and two of the same name."""
    folder = tmp_path_factory.mktemp("kitchen")
    (folder / "kitchen.py").write_text(FLOWS)
    (folder / "prefect.yaml").write_text(DEPLOYMENTS)
    prefect_server.prefect("work-pool", "create", "kitchen", "--type", "process", cwd=folder)
    prefect_server.prefect("--no-prompt", "deploy", "--all", cwd=folder)
    return prefect_server


def test_a_unique_name_needs_no_flow(kitchen: PrefectServer) -> None:
    assert "Created flow run" in kitchen.prefect("deployment", "run", "only-bread").stdout


def test_an_ambiguous_name_gets_prefects_own_answer(kitchen: PrefectServer) -> None:
    refused = kitchen.prefect("deployment", "run", "both", check=False)
    assert refused.returncode == 1
    assert "<FLOW_NAME>/<DEPLOYMENT_NAME>" in refused.stdout + refused.stderr


def test_the_full_name_works_as_ever(kitchen: PrefectServer) -> None:
    assert "Created flow run" in kitchen.prefect("deployment", "run", "fry/both").stdout


def test_a_prefect_without_that_client_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from crucible.prefect_compat import deployment_names

    monkeypatch.setitem(sys.modules, "prefect.client.orchestration._deployments.client", None)
    with caplog.at_level(logging.DEBUG, logger=deployment_names.__name__):
        deployment_names.setup_environment(ctx=None)
    assert [record.levelname for record in caplog.records] == ["DEBUG"]


def test_a_prefect_whose_client_takes_other_arguments_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, prefect_api: str
) -> None:
    import anyio
    from prefect import get_client
    from prefect.client.orchestration._deployments.client import DeploymentAsyncClient

    from crucible.prefect_compat import deployment_names

    async def other_arguments(self: object) -> None: ...

    async def look_up() -> None:
        async with get_client() as client:
            await client.read_deployment_by_name("no-such-deployment")

    monkeypatch.setattr(DeploymentAsyncClient, "read_deployments", other_arguments)
    # Restored at the end of the test, together with what the plugin puts in its place.
    monkeypatch.setattr(DeploymentAsyncClient, "read_deployment_by_name", DeploymentAsyncClient.read_deployment_by_name)
    deployment_names.setup_environment(ctx=None)
    with pytest.raises(ValueError, match="Expected format"):
        anyio.run(look_up)


def test_prefect_is_not_slowed_down_by_what_else_the_package_needs(tmp_path: Path) -> None:
    script = "import sys, crucible.local; print({'typer', 'rich', 'httpx', 'psutil', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "set()"
