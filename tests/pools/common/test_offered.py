"""What a run may set on each pool: not the command, not its environment, nothing that reaches beyond the run."""

from __future__ import annotations

import asyncio
import uuid
from collections.abc import Callable
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.exceptions import PrefectHTTPStatusError
from prefect.workers.base import BaseJobConfiguration

from crucible.errors import ConfigError
from crucible.local.provision import POOL_TEMPLATE
from crucible.local.services import POOL_TYPE
from crucible.pools.aws import pools as aws
from crucible.pools.aws.worker import EcsJobConfiguration
from crucible.pools.common import registration
from crucible.pools.common.offered import parse_settings, settings_of
from crucible.pools.docker import pool as docker
from crucible.pools.docker.configuration import DockerGpuJobConfiguration
from crucible.pools.modal import pool as modal
from crucible.pools.modal.configuration import ModalJobConfiguration
from crucible.resources import Resources
from tests.pools.aws.test_worker import OUTPUTS

TEMPLATES: dict[str, dict[str, Any]] = {
    POOL_TYPE: POOL_TEMPLATE,
    "docker-gpu": docker.pool_template(docker.PoolOptions(image="crucible:1")),
    "crucible-ecs": aws.pool_template(aws.SPOT, OUTPUTS, aws.PoolOptions(image="crucible:1")),
    "modal": modal.pool_template(modal.PoolOptions()),
}
WORKERS: dict[str, type[BaseJobConfiguration]] = {
    "docker-gpu": DockerGpuJobConfiguration,
    "crucible-ecs": EcsJobConfiguration,
    "modal": ModalJobConfiguration,
}
FORBIDDEN = {
    "command": "sh -c 'touch /tmp/mine'",
    "env": {"LD_PRELOAD": "/tmp/mine.so"},
    "env.LD_PRELOAD": "/tmp/mine.so",
}
BEYOND_THE_RUN = {
    "docker-gpu": {"volumes": ["/:/host"], "user": "0:0", "network_mode": "host", "pass_on": ["HOME"], "state": "/etc"},
    "crucible-ecs": {"task_role_arn": "arn:aws:iam::1:role/admin", "aws_credentials": None, "cluster": "other"},
    "modal": {"dockerfile": "/etc/passwd", "context_dir": "/root", "secrets": ["other"], "credentials": None},
}


@pytest.mark.parametrize("kind", TEMPLATES)
def test_the_server_refuses_a_run_that_names_its_command(prefect_api: str, kind: str) -> None:
    with get_client(sync_client=True) as client:
        deployment = deployed(client, kind)
        for name, value in {**FORBIDDEN, **BEYOND_THE_RUN.get(kind, {})}.items():
            with pytest.raises(PrefectHTTPStatusError) as refused:
                client.create_flow_run_from_deployment(deployment, job_variables={name: value})
            assert refused.value.response.status_code in (409, 422)
            assert name.partition(".")[0] in refused.value.response.text


def deployed(client: SyncPrefectClient, kind: str) -> uuid.UUID:
    name = f"offered-{uuid.uuid4().hex[:8]}"
    client.create_work_pool(WorkPoolCreate(name=name, type=kind, base_job_template=TEMPLATES[kind]))
    return client.create_deployment(client.create_flow_from_name("offered"), name, work_pool_name=name)


@pytest.mark.parametrize("kind", WORKERS)
@pytest.mark.parametrize("name", FORBIDDEN)
def test_a_worker_refuses_it_too(kind: str, name: str) -> None:
    """A run that was changed behind the server's check, and `env`, which Prefect's workers take in any case."""
    filled = WORKERS[kind].from_template_and_values
    with pytest.raises(ConfigError, match=rf"job variable {name.partition('.')[0]}: the pool does not offer it"):
        asyncio.run(filled(TEMPLATES[kind], {name: FORBIDDEN[name]}, client=object()))  # type: ignore[arg-type]


def make_docker(**options: Any) -> dict[str, Any]:
    return docker.pool_template(docker.PoolOptions(image="x", **options))


def make_aws(**options: Any) -> dict[str, Any]:
    return aws.pool_template(aws.SPOT, OUTPUTS, aws.PoolOptions(image="x", **options))


def make_modal(**options: Any) -> dict[str, Any]:
    return modal.pool_template(modal.PoolOptions(**options))


@pytest.mark.parametrize("make", [make_docker, make_aws, make_modal])
def test_the_person_who_makes_the_pool_may_set_all_of_it(make: Callable[..., dict[str, Any]]) -> None:
    template = make(
        environment={"MINE": "1"}, settings={"command": "python -m mine", "env": {"MINE": "0", "YOURS": "2"}}
    )
    fixed = template["job_configuration"]
    assert fixed["command"] == "python -m mine"
    assert {"MINE": "1", "YOURS": "2"}.items() <= fixed["env"].items()
    assert "command" not in template["variables"]["properties"]
    with pytest.raises(ConfigError, match="comand: the worker has no such setting"):
        make(settings={"comand": "x"})


def test_what_has_no_default_is_left_to_the_worker() -> None:
    assert "taskDefinition" not in make_aws()["job_configuration"]["task_run_request"]
    assert "command" not in make_modal()["job_configuration"]


def test_settings_stay_until_they_are_named_again(prefect_api: str) -> None:
    name = f"kept-{uuid.uuid4().hex[:8]}"

    def fixed(**options: Any) -> dict[str, Any]:
        made: dict[str, Any] = {}
        registration.register(
            name,
            "docker-gpu",
            lambda former: made.update(make_docker(settings={**former, **options})) or made,  # type: ignore[func-returns-value]
            runs="here",
            deploy=False,
        )
        with get_client(sync_client=True) as client:
            template = client.read_work_pool(name).base_job_template
        assert settings_of(template) == settings_of(made)
        return dict(template["job_configuration"])

    assert fixed(**parse_settings({"volumes": '["/data:/data:ro"]', "user": "1000:1000"}))["user"] == "1000:1000"
    assert fixed()["volumes"] == ["/data:/data:ro"]
    taken_back = fixed(**parse_settings({"user": ""}))
    assert (taken_back.get("user"), taken_back["volumes"]) == (None, ["/data:/data:ro"])


OFFERS = [("docker-gpu", "docker-gpu"), ("crucible-ecs", "ec2-spot"), ("modal", "modal")]


@pytest.mark.parametrize(("kind", "pool"), OFFERS)
def test_what_a_job_may_ask_for_is_offered(kind: str, pool: str) -> None:
    wanted = Resources(gpus=0, memory_gib=8, image="crucible:2")
    assert wanted.job_variables(pool).keys() <= TEMPLATES[kind]["variables"]["properties"].keys()
