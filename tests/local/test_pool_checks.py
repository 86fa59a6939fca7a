"""What doctor says of a cloud's pool, step by step from nothing to ready."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import TYPE_CHECKING

import pytest

from crucible.cli.local import _print_rows
from crucible.doctor import pool_checks
from crucible.doctor.checks import Check
from crucible.local import access
from crucible.pools.modal.pool import PoolOptions, pool_template

if TYPE_CHECKING:
    from tests.conftest import PrefectServer, S3Place


@pytest.fixture
def no_account(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine on which nobody ever logged in to AWS."""
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_PROFILE", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_CONFIG_FILE", "/nonexistent")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")


@pytest.mark.usefixtures("no_account")
def test_ec2_from_no_account_to_a_pool_without_a_worker(
    monkeypatch: pytest.MonkeyPatch, s3_place: S3Place, prefect_server: PrefectServer
) -> None:
    check = pool_checks.ec2("ec2-on-demand")
    assert (check.ready, check.found) == (False, "no AWS credentials")

    for name, value in s3_place.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    assert "AWS_DEFAULT_REGION" in pool_checks.ec2("ec2-on-demand").fix

    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("PREFECT_API_URL", prefect_server.api_url)
    check = pool_checks.ec2("ec2-on-demand")
    assert "the server has no such pool" in check.found
    assert check.fix == "crucible aws up"

    prefect_server.create_pool("ec2-on-demand")
    check = pool_checks.ec2("ec2-on-demand")
    assert "no worker polls the pool" in check.found
    assert check.fix == "crucible aws worker ec2-on-demand"


@pytest.mark.usefixtures("no_account")
def test_a_cloud_that_does_not_answer_is_not_ready(monkeypatch: pytest.MonkeyPatch, s3_place: S3Place) -> None:
    for name, value in s3_place.env.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:1")
    check = pool_checks.ec2("ec2-spot")
    assert not check.ready
    assert "out of reach" in check.found


def test_modal_looks_at_the_address_that_the_pool_gives_its_sandboxes(
    monkeypatch: pytest.MonkeyPatch, prefect_server: PrefectServer
) -> None:
    template = pool_template(PoolOptions(environment={"PREFECT_API_URL": "http://10.0.0.7:4200/api"}))
    prefect_server.create_pool("modal", base_job_template=template)
    monkeypatch.setenv("PREFECT_API_URL", prefect_server.api_url)
    monkeypatch.setenv("PREFECT_API_AUTH_STRING", access.auth_string(prefect_server.home))
    check = pool_checks._with_way_back(Check("modal", True, "token ak-1", local=False), "https://api.modal.com")
    assert not check.ready
    assert "http://10.0.0.7:4200/api is an address of a private network" in check.found


def test_a_server_that_does_not_answer_is_said_to_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PREFECT_API_URL", "http://127.0.0.1:1/api")
    check = pool_checks._with_worker(Check("modal", True, "token ak-1", local=False))
    assert not check.ready
    assert "no Prefect server to ask for the pool at http://127.0.0.1:1/api" in check.found


def test_the_local_pool_is_ready_when_what_it_needs_is() -> None:
    ready = Check("server", True, "process 1")
    not_needed = Check("modal", False, "no Modal token", "modal token new", local=False)
    assert pool_checks.local([ready, not_needed]).ready
    assert pool_checks.local([replace(ready, ready=False), not_needed]).found == "needs: server"


def test_what_doctor_found_is_wrapped_and_a_command_is_not(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "80")
    command = "prefect worker start --pool slurm --type slurm --name a-worker-with-a-long-name"
    _print_rows([Check("patches", False, " ".join(["process-start on"] * 10), command)])
    lines = [re.sub(r"\x1b\[[0-9;]*m", "", line) for line in capsys.readouterr().out.splitlines()]
    assert f"{'':26}→ {command}" in lines
    found = [line for line in lines if "process-start" in line]
    assert len(found) > 2
    assert all(line.startswith(" " * 26) and len(line) <= 80 for line in found[1:])
