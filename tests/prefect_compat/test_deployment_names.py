"""Bare deployment names in Prefect's own commands, and Prefect left alone wherever that cannot work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from crucible.prefect_compat import deployment_names

if TYPE_CHECKING:
    from tests.conftest import PrefectServer

FLOWS = """
from prefect import flow

@flow
def bake(minutes: float | None = None): ...

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


@pytest.mark.parametrize("given", [["-p", "minutes=NaN"], ['--params={"minutes": 1e999}']])
def test_a_number_that_json_does_not_have_is_refused_and_not_taken_for_none(
    kitchen: PrefectServer, given: list[str]
) -> None:
    """Prefect's client would send null: `max_cost_usd=NaN` would be a run without a cap."""
    refused = kitchen.prefect("deployment", "run", *given, "only-bread", check=False)
    assert refused.returncode == 1
    assert "Created flow run" not in refused.stdout
    assert "is not valid under any of the given schemas" in " ".join((refused.stdout + refused.stderr).split())


def test_a_schedule_is_created_by_the_bare_name(kitchen: PrefectServer) -> None:
    created = kitchen.prefect("deployment", "schedule", "create", "only-bread", "--interval", "3600")
    assert "Created deployment schedule" in created.stdout


@pytest.mark.parametrize(
    ("arguments", "name"),
    [
        ("deployment run bread", "bread"),
        ("deployment run -p pool=ec2-spot --watch bread", "bread"),
        ("deployment run bread -p store=aws", "bread"),
        ("deployment run --params={} bread", "bread"),
        ("--no-prompt --profile other deployment inspect bread -o json", "bread"),
        ("deployment schedule create bread --cron daily", "bread"),
        ("deployment schedule pause bread 3f2", "bread"),
        ("deployment run bake/bread", None),
        ("deployment run --id 3f2", None),
        ("deployment ls", None),
        ("worker start --pool deployment", None),
        ("server start", None),
    ],
)
def test_the_name_is_found_among_the_arguments(arguments: str, name: str | None) -> None:
    words = arguments.split()
    place = deployment_names.name_at(words)
    assert (None if place is None else words[place]) == name


def test_only_prefects_own_command_line_is_read() -> None:
    run = ["deployment", "run", "bread"]
    assert deployment_names.command_arguments(["/bin/prefect", *run], ["python", "/bin/prefect", *run]) == run
    assert deployment_names.command_arguments(["-m", *run], ["python", "-m", "prefect", *run]) == run
    assert deployment_names.command_arguments(["train.py", *run], ["python", "train.py", *run]) == []
    assert deployment_names.command_arguments(["-m", *run], ["python", "-m", "kitchen", *run]) == []


def test_prefect_is_not_slowed_down_by_what_else_the_package_needs(tmp_path: Path) -> None:
    script = "import sys, crucible.local; print({'typer', 'rich', 'httpx', 'psutil', 'pydantic'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=tmp_path)
    assert done.stdout.strip() == "set()"
