"""Bare deployment names in Prefect's own commands, and Prefect left alone wherever that cannot work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from prefect import flow
from prefect.client.orchestration import get_client
from prefect.settings import PREFECT_API_URL, temporary_settings
from prefect.utilities.callables import parameter_schema

from crucible.prefect_compat import deployment_names

if TYPE_CHECKING:
    from tests.conftest import PrefectServer


@flow
def bake(minutes: float | None = None) -> None: ...


@flow
def fry() -> None: ...


@pytest.fixture(scope="module")
def kitchen(prefect_server: PrefectServer) -> PrefectServer:
    """The shared server with one deployment of a unique name and two of the same name."""
    made = [(bake, "only-bread"), (bake, "both"), (fry, "both")]
    with temporary_settings({PREFECT_API_URL: prefect_server.api_url}), get_client(sync_client=True) as client:
        for of, name in made:
            client.create_deployment(
                flow_id=client.create_flow(of),
                name=name,
                parameter_openapi_schema=parameter_schema(of).model_dump_for_openapi(),
                enforce_parameter_schema=True,
            )
    return prefect_server


def test_an_ambiguous_name_gets_prefects_own_answer(kitchen: PrefectServer) -> None:
    refused = kitchen.prefect("deployment", "run", "both", check=False)
    assert refused.returncode == 1
    assert "<FLOW_NAME>/<DEPLOYMENT_NAME>" in refused.stdout + refused.stderr


def test_a_number_that_json_does_not_have_is_refused_and_not_taken_for_none(kitchen: PrefectServer) -> None:
    """Prefect's client would send null: `max_cost_usd=NaN` would be a run without a cap."""
    refused = kitchen.prefect("deployment", "run", "-p", "minutes=NaN", "only-bread", check=False)
    assert refused.returncode == 1
    assert "Created flow run" not in refused.stdout
    said = " ".join((refused.stdout + refused.stderr).split())
    assert "Validation failed for field 'minutes'" in said
    assert "is not valid under any of the given schemas" in said
    assert "Traceback" not in said


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
