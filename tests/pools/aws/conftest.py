"""One rehearsed AWS with the real stack in it, shared by the tests here; each leaves it without tasks or faults."""

from __future__ import annotations

import shlex
import subprocess
import time
import uuid
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolUpdate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, temporary_settings

from crucible.local.state import PROJECT
from crucible.pools.aws.pools import PoolOptions, register
from crucible.pools.aws.session import Aws
from crucible.pools.aws.stack import StackState
from crucible.pools.aws.worker import worker_command, worker_environment
from crucible.pools.common.registration import PULL_STEPS
from crucible.rehearsal.aws.client import AwsRehearsal
from crucible.rehearsal.aws.session import prefect_secret
from tests.conftest import PrefectServer
from tests.tasks.standing.sitecustomize import DEATH, STANDING

PATIENCE_SECONDS = 180.0  # a busy machine's SQLite may keep the Prefect server from answering for a minute
LOOK_AGAIN_SECONDS = 0.3  # each look is a request to the server, which others use as well

PARAMETERS = {
    "BudgetEmail": "someone@example.com",
    "Owner": "tests",
    "MaxSpotInstances": "3",
    "MaxOnDemandInstances": "2",
}


@pytest.fixture(scope="session")
def cloud(tmp_path_factory: pytest.TempPathFactory) -> Iterator[AwsRehearsal]:
    folder = tmp_path_factory.mktemp("aws")
    with AwsRehearsal.start(
        folder,
        working_directory=PROJECT,
        boot_seconds=0.1,
        shutdown_seconds=0.5,
        detect_seconds=0.1,
    ) as aws:
        yield aws


@pytest.fixture(scope="session")
def stack_state(cloud: AwsRehearsal, prefect_server: PrefectServer) -> StackState:
    return cloud.deploy(
        parameters=PARAMETERS | prefect_secret(cloud, prefect_server.env.get("PREFECT_API_AUTH_STRING"))
    )


@pytest.fixture
def aws(cloud: AwsRehearsal, stack_state: StackState) -> Aws:
    return cloud.session()


@dataclass
class Pool:
    """The real pool `ec2-spot` on the shared server, with a real ECS worker, against the rehearsed AWS."""

    name: str
    client: SyncPrefectClient
    cloud: AwsRehearsal
    state: StackState
    log: Path

    def submit(self, command: str | None = None, *, entrypoint: str | None = None, **variables: Any) -> FlowRun:
        """Ask for a flow run; a shell's `command` stands in for the flow where its code does not matter."""
        shell = {"command": f"sh -c {shlex.quote(command)}", "stop_timeout": 2} if command else {}
        deployment = self.client.create_deployment(
            flow_id=self.client.create_flow_from_name("on-ec2"),
            name=f"test-{uuid.uuid4().hex[:8]}",
            work_pool_name=self.name,
            entrypoint=entrypoint,
            pull_steps=PULL_STEPS,
            job_variables=shell | variables,
        )
        return self.client.create_flow_run_from_deployment(deployment)

    def wait_for_state(self, run: FlowRun, *names: str) -> FlowRun:
        deadline = time.monotonic() + PATIENCE_SECONDS
        while (now := self.client.read_flow_run(run.id)).state is None or now.state.name not in names:
            if time.monotonic() > deadline:
                said = "\n".join(entry["message"] for entry in self.cloud.timeline()[-15:])
                raise AssertionError(f"the run is {now.state!r}\n{said}\n{self.log.read_text()[-4000:]}")
            time.sleep(LOOK_AGAIN_SECONDS)
        return now

    def tasks(self, run: FlowRun) -> list[dict[str, Any]]:
        """The ECS tasks of a flow run, in the order of their creation."""
        return _of(run, self.cloud.state())

    def wait_for_task(self, run: FlowRun, status: str = "RUNNING") -> dict[str, Any]:
        """Wait until the newest task of the run has that status, and its worker has noted it."""

        def there(state: dict[str, Any]) -> dict[str, Any] | None:
            tasks = _of(run, state)
            return tasks[-1] if tasks and tasks[-1]["status"] == status else None

        task: dict[str, Any] = self.cloud.wait_for(there, f"a {status} task", PATIENCE_SECONDS)
        deadline = time.monotonic() + PATIENCE_SECONDS
        while self.client.read_flow_run(run.id).infrastructure_pid is None and time.monotonic() < deadline:
            time.sleep(LOOK_AGAIN_SECONDS)
        return task


def _of(run: FlowRun, state: dict[str, Any]) -> list[dict[str, Any]]:
    return [task for task in state["tasks"] if task["tags"].get("prefect.io/flow-run-id") == str(run.id)]


@pytest.fixture(scope="session")
def pools(
    cloud: AwsRehearsal,
    stack_state: StackState,
    prefect_server: PrefectServer,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[tuple[str, Path]]:
    """Both pools, registered from the stack's outputs, and the worker of the first with its log."""
    log = tmp_path_factory.mktemp("aws-worker") / "worker.log"
    options = PoolOptions(
        image=f"{stack_state.outputs['ImageRepository']}:rehearsal",
        owner="tests",
        prefix="test-",
        memory_mib=4000,
        environment={"PYTHONPATH": str(STANDING), DEATH: str(log.with_name("death"))},
    )
    with temporary_settings({PREFECT_API_URL: prefect_server.api_url}):
        name = register(stack_state.outputs, stack_state.parameters, options, deploy=False)[0]
        _offer(name, "command", "task_role_arn")
    environment = {
        **prefect_server.env,
        **cloud.environment,
        **worker_environment(stack_state),
        "PREFECT_WORKER_QUERY_SECONDS": "2",
        "PREFECT_INTEGRATIONS_AWS_ECS_WORKER_CREATE_TASK_RUN_MAX_ATTEMPTS": "1",
    }
    with log.open("wb") as output:
        worker = subprocess.Popen(
            worker_command(name), env=environment, stdout=output, stderr=output, start_new_session=True
        )
    yield name, log
    worker.terminate()
    worker.wait(PATIENCE_SECONDS)


def _offer(pool: str, *names: str) -> None:
    """Let runs set more than Crucible's pools let them: the tests' commands stand in for flows."""
    with get_client(sync_client=True) as client:
        template = client.read_work_pool(pool).base_job_template
        configuration, given = template["job_configuration"], template["variables"]["properties"]
        for name in names:
            place = configuration["task_run_request"]["overrides"] if name == "task_role_arn" else configuration
            key = "taskRoleArn" if name == "task_role_arn" else name
            given[name] = {"type": "string"} | ({"default": place[key]} if key in place else {})
            place[key] = "{{ " + name + " }}"
        client.update_work_pool(pool, WorkPoolUpdate(base_job_template=template))


@pytest.fixture
def pool(
    pools: tuple[str, Path], cloud: AwsRehearsal, stack_state: StackState, prefect_server: PrefectServer
) -> Iterator[Pool]:
    name, log = pools
    with temporary_settings({PREFECT_API_URL: prefect_server.api_url}), get_client(sync_client=True) as client:
        yield Pool(name, client, cloud, stack_state, log)
