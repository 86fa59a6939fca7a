"""What the ECS worker asks ECS for: no secrets, nothing of a server beside it, nothing that ECS would refuse."""

from __future__ import annotations

import asyncio
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun
from prefect.settings import (
    PREFECT_API_AUTH_STRING,
    PREFECT_API_URL,
    PREFECT_CLIENT_CUSTOM_HEADERS,
    PREFECT_SERVER_API_AUTH_STRING,
    PREFECT_SERVER_DATABASE_CONNECTION_URL,
    temporary_settings,
)

from crucible.errors import ConfigError
from crucible.pools.aws.pools import SPOT, PoolOptions, pool_template
from crucible.pools.aws.worker import EcsJobConfiguration

OUTPUTS = {
    "ClusterArn": "arn:aws:ecs:us-east-1:123456789012:cluster/crucible",
    "SpotProvider": "spot",
    "StoreUri": "s3://bucket/prefix",
    "LogGroup": "crucible",
    "ExecutionRoleArn": "arn:aws:iam::123456789012:role/execution",
    "TaskRoleArn": "arn:aws:iam::123456789012:role/task",
}
SECRET = "arn:aws:secretsmanager:us-east-1:123456789012:secret:prefect"
BESIDE_A_SERVER = {
    PREFECT_API_URL: "https://prefect.example.com/api",
    PREFECT_API_AUTH_STRING: "admin:canary-1",
    PREFECT_SERVER_API_AUTH_STRING: "admin:canary-2",
    PREFECT_SERVER_DATABASE_CONNECTION_URL: "postgresql+asyncpg://u:canary-3@db/prefect",
}


def prepared(
    secret: str | None = SECRET, settings: dict[str, Any] | None = None, **variables: Any
) -> EcsJobConfiguration:
    """A run's configuration, as the worker of a pool with that secret and those settings prepares it."""
    outputs = OUTPUTS | ({"PrefectAuthSecretArn": secret} if secret else {})
    template = pool_template(SPOT, outputs, PoolOptions(image="image", settings=settings or {}))
    made = asyncio.run(EcsJobConfiguration.from_template_and_values(template, variables, client=object()))
    made.prepare_for_flow_run(FlowRun(flow_id=uuid4(), name="run"))
    return made


def test_no_secret_stands_in_the_request_of_a_worker_beside_its_server() -> None:
    with temporary_settings(BESIDE_A_SERVER):
        made = prepared(settings={"env": {"MINE": "1"}})
    assert "canary" not in repr((made.env, made.task_definition, made.task_run_request))
    assert made.env["PREFECT_API_URL"] == "https://prefect.example.com/api"
    assert made.env["MINE"] == "1"
    assert not [name for name in made.env if name.startswith("PREFECT_SERVER_")]
    assert made.prefect_api_auth_string_secret_arn == SECRET


def test_a_password_without_a_secret_is_refused_with_the_fix() -> None:
    with (
        temporary_settings(BESIDE_A_SERVER),
        pytest.raises(ConfigError, match=r"PREFECT_API_AUTH_STRING: .*PrefectAuthSecretArn") as refused,
    ):
        prepared(secret=None)
    assert "canary" not in str(refused.value)
    with temporary_settings(restore_defaults={PREFECT_API_AUTH_STRING}):
        prepared(secret=None)  # a server without a password needs none


@pytest.mark.parametrize(
    "settings",
    [
        {PREFECT_CLIENT_CUSTOM_HEADERS: {"CF-Access-Client-Secret": "canary-4"}},
        {PREFECT_API_URL: "https://admin:canary-5@prefect.example.com/api"},
    ],
    ids=["headers", "url"],
)
def test_a_password_that_has_no_place_in_secrets_manager_is_refused(settings: dict[Any, Any]) -> None:
    with temporary_settings(BESIDE_A_SERVER | settings), pytest.raises(ConfigError, match="password") as refused:
        prepared()
    assert "canary" not in str(refused.value)


def test_headers_that_the_pool_itself_names_are_no_secret() -> None:
    with temporary_settings({PREFECT_CLIENT_CUSTOM_HEADERS: {"X-Team": "a"}}):
        assert prepared(settings={"env": {"PREFECT_CLIENT_CUSTOM_HEADERS": '{"X-Team": "a"}'}}).env[
            "PREFECT_CLIENT_CUSTOM_HEADERS"
        ]


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        (
            {"settings": {"env": {"BIG": "x" * 8000}}},
            "env and command: together .* ECS allows 8192 .* the longest is BIG with 8000",
        ),
        ({"stop_timeout": 300}, "stop_timeout = 300: ECS allows at most 120"),
        ({"settings": {"family": "my family"}}, "family = 'my family'"),
        ({"labels": {f"label-{number}": "x" for number in range(50)}}, "tags, and ECS allows 50"),
        ({"labels": {"team": "x" * 257}}, "team: 257 characters, and ECS allows 256"),
        ({"labels": {"x" * 129: "team"}}, "has 129 characters, and ECS allows 128"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else "",
)
def test_what_ecs_would_refuse_is_refused_before_it_is_asked(variables: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        prepared(**variables)
