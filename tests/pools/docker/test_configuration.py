"""From job variables to what the engine is asked for. Needs no engine."""

from __future__ import annotations

import asyncio
import os
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_HOME,
    PREFECT_SERVER_API_AUTH_STRING,
    temporary_settings,
)

from crucible.errors import ConfigError
from crucible.pools.docker.configuration import INIT, DockerGpuJobConfiguration
from crucible.pools.docker.pool import PoolOptions, pool_template

TAGS = ["job:night", "attempt:3", "plain"]


def configured(options: PoolOptions | None = None, **variables: Any) -> DockerGpuJobConfiguration:
    """The configuration of one flow run on the pool, as the worker makes it."""
    template = pool_template(options or PoolOptions(image="crucible:cpu-1"))
    made = asyncio.run(DockerGpuJobConfiguration.from_template_and_values(template, variables, client=object()))
    made.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name="night-attempt-3", tags=TAGS))
    return made


@pytest.mark.parametrize(
    ("gpus", "request_"),
    [
        ("all", {"Count": -1, "DeviceIDs": None}),
        ("2", {"Count": 2, "DeviceIDs": None}),
        (2, {"Count": 2, "DeviceIDs": None}),
        ("device=0,2", {"Count": 0, "DeviceIDs": ["0", "2"]}),
    ],
)
def test_gpus_are_asked_for_as_docker_run_does(gpus: object, request_: dict[str, object]) -> None:
    (made,) = configured(gpus=gpus).container_settings()["device_requests"]
    assert made["Capabilities"] == [["gpu"]]
    assert {name: made[name] or (0 if name == "Count" else None) for name in request_} == request_


@pytest.mark.parametrize("gpus", ["0", 0])
def test_no_gpu_is_asked_for_only_when_told_so(gpus: object) -> None:
    assert configured(gpus=gpus).container_settings()["device_requests"] == []
    assert configured(PoolOptions(image="x", gpus="0")).container_settings()["device_requests"] == []
    assert configured().container_settings()["device_requests"] != []


def test_a_variable_that_makes_no_sense_is_named_with_its_value() -> None:
    with pytest.raises(ConfigError, match=r"job variable gpus: .*device=0,2.*'none at all'"):
        configured(gpus="none at all")
    with pytest.raises(ConfigError, match=r"job variable memory: .*'a lot'"):
        configured(memory="a lot")


def test_one_variable_leaves_the_others_as_they_are() -> None:
    settings = configured(PoolOptions(image="x", memory="8g"), shm_size="1g").container_settings()
    assert (settings["shm_size"], settings["mem_limit"], settings["init"]) == ("1g", "8g", True)


def test_the_container_is_locked_down() -> None:
    settings = configured().container_settings()
    assert settings["read_only"] is True
    assert settings["cap_drop"] == ["ALL"]
    assert settings["user"].split(":")[0] not in ("0", "root")
    assert settings["entrypoint"] == INIT
    assert settings["restart_policy"] == {"Name": "no"}
    assert settings["memswap_limit"] == settings["mem_limit"]


def test_settings_of_a_server_beside_the_worker_stay_out() -> None:
    with temporary_settings(
        {PREFECT_SERVER_API_AUTH_STRING: "admin:secret", PREFECT_API_AUTH_STRING: "admin:pass", PREFECT_HOME: "/x"}
    ):
        made = configured()
    assert not [name for name in made.env if name.startswith("PREFECT_SERVER") or name == "PREFECT_HOME"]
    assert made.env["PREFECT_API_AUTH_STRING"] == "admin:pass"


def test_credentials_come_from_the_worker_not_from_the_pool(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "key")
    monkeypatch.setenv("UNRELATED_SECRET", "x")
    made = configured()
    assert made.env["AWS_SECRET_ACCESS_KEY"] == "key"
    assert "UNRELATED_SECRET" not in made.env


def test_the_variables_of_the_pool_win_over_the_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRUCIBLE_STORE", "file:///worker")
    options = PoolOptions(image="x", environment={"CRUCIBLE_STORE": "s3://bucket/runs"})
    assert configured(options).env["CRUCIBLE_STORE"] == "s3://bucket/runs"


def test_this_machine_has_another_name_on_a_network_of_the_containers_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9000")
    there = {"PREFECT_API_URL": "http://localhost:4200/api", "HTTPS_PROXY": "http://me:p%40ss@127.0.0.1:3128"}
    made = configured(PoolOptions(image="x", network="bridge", environment=there))
    assert made.env["HTTPS_PROXY"] == "http://me:p%40ss@host.docker.internal:3128"
    assert made.env["AWS_ENDPOINT_URL"] == "http://host.docker.internal:9000"
    assert made.env["PREFECT_API_URL"] == "http://host.docker.internal:4200/api"
    made = configured(PoolOptions(image="x", network="host"))
    assert made.env["AWS_ENDPOINT_URL"] == "http://127.0.0.1:9000"


def test_containers_can_be_found_by_job_and_attempt() -> None:
    made = configured()
    assert made.labels["crucible.job"] == made.job == "night"
    assert made.labels["crucible.attempt"] == "3"


def test_the_grace_that_the_agent_plans_by_is_shorter_than_the_one_it_gets() -> None:
    made = configured(stop_timeout_seconds=90)
    assert float(made.env["CRUCIBLE_STOP_GRACE_SECONDS"] or 0) < 90


@pytest.mark.skipif(os.getuid() == 0, reason="as root the images' own user is taken")
def test_an_ordinary_user_owns_what_the_container_writes() -> None:
    assert configured().container_user == f"{os.getuid()}:{os.getgid()}"
