"""`crucible jobs continue` against a real server: the same parameters, the raised limits, or a reason why not."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
import typer
from prefect import flow
from prefect.client.orchestration import get_client
from typer.testing import CliRunner

from crucible.cli import jobs as command
from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.records import CodePackage, JobSpec, Limits, now
from crucible.jobs.status import JobState, JobStatus
from crucible.script_config import ScriptConfig
from crucible.store import Store
from crucible.supervision.heartbeat import SupervisorHeartbeat

pytestmark = pytest.mark.usefixtures("prefect_api")
GIVEN = {"preset": "debug", "project": "paper", "max_cost_usd": 0.05, "finish_by": "2026-01-01T00:00Z"}
VARIABLES = {"memory": "24g"}


CODE = CodePackage(digest="f" * 64, data={"data": "e" * 64})


def supervised(store: Store, flow_name: str = "train-nanogpt", **status: Any) -> Job:
    """A job that a run of a deployment has supervised."""

    @flow(name=flow_name)
    def supervise() -> None:
        """Never run."""

    with get_client(sync_client=True) as client:
        flow_id = client.create_flow(supervise)
        deployment = client.create_deployment(flow_id, name=f"tests-{uuid.uuid4().hex}", enforce_parameter_schema=False)
        run = client.create_flow_run_from_deployment(deployment, parameters=GIVEN, job_variables=VARIABLES)
    spec = {"script": ScriptConfig(command=["true"]), "code": CODE} if flow_name == "train-script" else {}
    job = Job.create(store, JobSpec(job_id="stopped", **spec))
    job.set_limits(Limits(max_cost_usd=0.05, max_attempts=7))
    job.supervise(str(run.id))
    record = JobStatus(**{"state": JobState.BUDGET_STOP, "reason": "", "supervisor": 1, **status})
    job.store.write_json("status.json", record.model_dump(mode="json"))
    return job


def run(job: Job, *arguments: str) -> Any:
    app = typer.Typer()
    command.register(app)
    app.command("other")(lambda: None)
    done = CliRunner().invoke(
        app, ["jobs", "continue", job.job_id, "--store", job.root.uri, "--json", *arguments], catch_exceptions=False
    )
    return json.loads(done.stdout)


def parameters(flow_run: str) -> dict[str, Any]:
    with get_client(sync_client=True) as client:
        return dict(client.read_flow_run(uuid.UUID(flow_run)).parameters)


def test_it_goes_on_with_the_parameters_it_had_and_the_limits_that_were_raised(store: Store) -> None:
    job = supervised(store)
    found = parameters(run(job, "--max-cost-usd", "0.5", "--finish-by", "none")["flow_run"])
    assert found == {
        **GIVEN,
        "job": "stopped",
        "max_cost_usd": 0.5,
        "max_hours": None,
        "max_attempts": 7,
        "finish_by": "",
    }
    assert job.read_limits().max_cost_usd == 0.5


def test_a_script_goes_on_with_the_code_that_was_packed(store: Store) -> None:
    job = supervised(store, "train-script")
    found = parameters(run(job)["flow_run"])
    assert (found["code"], found["data"]) == (CODE.digest, CODE.data)


def test_it_goes_on_with_the_job_variables_it_had(store: Store) -> None:
    flow_run = run(supervised(store))["flow_run"]
    with get_client(sync_client=True) as client:
        assert client.read_flow_run(uuid.UUID(flow_run)).job_variables == VARIABLES


def test_limits_that_were_changed_meanwhile_are_kept(store: Store) -> None:
    job = supervised(store)
    job.set_limits(Limits(max_cost_usd=3.0))
    assert parameters(run(job)["flow_run"])["max_cost_usd"] == 3.0


def test_what_cannot_be_continued_says_why(store: Store) -> None:
    running = supervised(store.child("running"), state=JobState.RUNNING)
    beat = SupervisorHeartbeat(flow_run_id="at-work", subject="stopped", at=now())
    running.root.write_json("supervisor-heartbeats/at-work.json", beat.model_dump(mode="json"))
    with pytest.raises(ConfigError, match=f"is running; `crucible jobs limits stopped --store {running.root.uri}`"):
        run(running)
    with pytest.raises(ConfigError, match="was started by tune-nanogpt"):
        run(supervised(store.child("trial"), "tune-nanogpt"))
    trial = Job.create(store.child("sweep"), JobSpec(job_id="rates-0003"))
    trial.root.write_json("sweeps/rates/sweep.json", {})
    with pytest.raises(ConfigError, match=f"`crucible sweeps continue rates --store {trial.root.uri}`") as refused:
        run(trial)
    assert "prefect deployment run" not in str(refused.value)
    script = ScriptConfig(command=["true"])
    stage = Job.create(store.child("stage"), JobSpec(job_id="a-evaluate-local", script=script, evaluates="a"))
    with pytest.raises(ConfigError, match="is the stage evaluate of a and goes on with it: `crucible jobs continue a "):
        run(stage, "--max-hours", "2")
    assert stage.read_limits() == Limits()
    with pytest.raises(ConfigError, match="max_cost_usd"):
        run(supervised(store.child("bad")), "--max-cost-usd", "-1")
    alone = Job.create(store.child("alone"), JobSpec(job_id="stopped"))
    with pytest.raises(ConfigError, match="not started by a flow run; start the program again"):
        run(alone)
    alone.supervise(str(uuid.uuid4()))
    with pytest.raises(ConfigError, match="does not know the flow run"):
        run(alone)
