"""Job variables of the supervising run reach its attempts, or are refused by name, and outlive the run."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import WorkPoolCreate

from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec
from crucible.local.provision import POOL_TEMPLATE
from crucible.pools.aws.pools import SPOT, pool_template
from crucible.pools.aws.pools import PoolOptions as AwsOptions
from crucible.pools.docker import pool as docker
from crucible.store import Store
from crucible.supervision.retry_policy import Placement
from tasks import job_variables
from tests.pools.aws.test_worker import OUTPUTS

DOCKER = docker.pool_template(docker.PoolOptions(image="crucible:1"))
ECS = pool_template(SPOT, OUTPUTS, AwsOptions(image="crucible:1"))


def run_with(monkeypatch: pytest.MonkeyPatch, **variables: Any) -> None:
    """This test is a supervising run that was started with `-jv`."""
    monkeypatch.setattr(job_variables, "flow_run", SimpleNamespace(job_variables=variables))


def test_what_the_pool_has_a_place_for_is_passed_on() -> None:
    wanted = {"gpus": "device=0", "memory": "24g"}
    assert job_variables.passed_on(wanted, DOCKER, "docker-gpu") == wanted


def test_a_number_is_text_where_the_pool_wants_text() -> None:
    given = {"gpus": 2, "memory": 14000}
    assert job_variables.passed_on(given, ECS, "ec2-spot") == {"gpus": "2", "memory": 14000}


@pytest.mark.parametrize(
    ("template", "variable"), [(DOCKER, "cpu"), (DOCKER, "env"), (ECS, "memory_mib"), (POOL_TEMPLATE, "gpus")]
)
def test_what_the_pool_would_drop_is_refused_by_name(template: dict[str, Any], variable: str) -> None:
    with pytest.raises(ConfigError, match=rf"job variable {variable}: the pool here has none .* -p pool="):
        job_variables.passed_on({variable: "24g"}, template, "here")


def test_what_one_run_was_given_is_on_record_for_the_next(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    job = Job(store, "night")
    run_with(monkeypatch, memory="24g", stream_output=False)
    job_variables.remember_variables(job)
    run_with(monkeypatch)
    job_variables.remember_variables(job)
    assert job_variables.variables_of(job, JobSpec(job_id="night")) == {"memory": "24g"}
    run_with(monkeypatch, gpus="1")
    job_variables.remember_variables(job)
    run_with(monkeypatch)
    assert job_variables.variables_of(Job(store, "night"), JobSpec(job_id="night")) == {"gpus": "1"}


def test_a_stage_on_another_pool_is_not_refused_for_what_the_training_was_given(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the evaluation would fail when the training is paid."""
    run_with(monkeypatch, memory="24g")
    stage = JobSpec(job_id="night-evaluate-local", evaluates="night")
    job = Job(store, stage.job_id)
    assert job_variables.variables_of(job, stage) == {}
    job_variables.remember_variables(job)  # as for one on the same pool
    assert job_variables.variables_of(job, stage) == {"memory": "24g"}


def test_the_pools_own_template_decides(prefect_api: str, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    with get_client(sync_client=True) as client:
        template = {"job_configuration": {"env": "{{ env }}"}, "variables": {"properties": {"env": {"type": "object"}}}}
        pool = WorkPoolCreate(name="with-variables", type="process", base_job_template=template)
        client.create_work_pool(pool, overwrite=True)
    run_with(monkeypatch, env={"FOO": "bar"})
    given = job_variables.given_for(Job(store, "a"), JobSpec(job_id="a"), "with-variables")
    assert given == {"env": {"FOO": "bar"}}
    places = [Placement("with-variables"), Placement("no-such-pool")]
    job_variables.require_known({"env": {}}, places)
    with pytest.raises(ConfigError, match="job variable gpus"):
        job_variables.require_known({"gpus": "2"}, places)


@pytest.mark.parametrize(
    ("place", "variable"),
    [
        (Placement("modal", "L4"), {"gpu": "H100"}),
        (Placement("skypilot", "gcp/us-central1/g2-standard-4+L4:1/spot"), {"use_spot": False}),
    ],
    ids=["modal", "skypilot"],
)
def test_another_machine_than_the_one_that_is_billed_is_refused(place: Placement, variable: dict[str, Any]) -> None:
    """The plan's machine is what the pool is told: it would be trained on, whatever was given."""
    with pytest.raises(ConfigError, match=f"job variable {next(iter(variable))}: .*resources=.*{place.instance[:4]}"):
        job_variables.require_known(variable, [place])
