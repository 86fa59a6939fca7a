"""The `skypilot` worker: real worker, server and bridge, with SkyPilot's SDK answered by what 0.14.1 said."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import pytest
from prefect.client.orchestration import SyncPrefectClient
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.states import Cancelling, Pending, Running

from crucible.cli.sky import status
from crucible.config import TrainConfig
from crucible.errors import CrucibleError
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, JobSpec, Launch
from crucible.jobs.status import JobState
from crucible.pools.common.machines import pid_of
from crucible.pools.skypilot.configuration import SkyJobConfiguration, cluster_name
from crucible.pools.skypilot.failures import classify
from crucible.pools.skypilot.worker import SkyWorker
from crucible.store import Store, store_at
from crucible.supervision.retry_policy import Placement
from crucible.supervision.supervisor import Supervision
from tasks.launching import PrefectLauncher
from tests.faults.small_jobs import new_job
from tests.faults.world import Life, Listening, Pool, World, alive_for, ends
from tests.pools.skypilot.conftest import FakeSky
from tests.waiting import until

T = TypeVar("T")
ELSEWHERE = {"PREFECT_API_URL": "https://prefect.example.org/api"}
WAIT_SECONDS = 60


class Runs:
    """Flow runs of a pool of their own, run by a worker in this process."""

    def __init__(self, client: SyncPrefectClient, sky: FakeSky) -> None:
        self.client, self.sky = client, sky
        self.pool = client.create_work_pool(
            WorkPoolCreate(
                name=f"sky-{uuid4().hex[:8]}",
                type="skypilot",
                base_job_template=SkyWorker.get_default_base_job_template(),
            )
        )

    def fields(self, **given: Any) -> dict[str, Any]:
        usual = {
            "infra": "gcp/us-central1",
            "sky_python": str(self.sky.python),
            "poll_seconds": 0.05,
            "setup": "make it",
        }
        return {**usual, "env": ELSEWHERE, **given}

    def create(self, parameters: dict[str, Any] | None = None, **given: Any) -> FlowRun:
        deployment = self.client.create_deployment(
            flow_id=self.client.create_flow_from_name("on-sky"),
            name=f"test-{uuid4().hex[:8]}",
            work_pool_name=self.pool.name,
            job_variables=self.fields(**given),
        )
        run = self.client.create_flow_run_from_deployment(deployment, parameters=parameters or {})
        self.client.set_flow_run_state(run.id, Pending(), force=True)
        return self.read(run)

    def read(self, run: FlowRun) -> FlowRun:
        return self.client.read_flow_run(run.id)

    def state(self, run: FlowRun) -> str:
        state = self.read(run).state
        assert state is not None
        return f"{state.type.value} {state.name}: {state.message}"

    def cluster(self, run: FlowRun) -> str:
        return cluster_name(str(self.pool.id), run)

    def in_worker(self, work: Callable[[SkyWorker], Coroutine[Any, Any, T]], name: str = "sky-1") -> T:
        async def within() -> T:
            async with SkyWorker(work_pool_name=self.pool.name, name=name) as worker:
                await SkyWorker.__mro__[2].sync_with_backend(worker)  # a heartbeat without what follows from it
                return await asyncio.wait_for(work(worker), WAIT_SECONDS)

        return asyncio.run(within())

    def run(self, run: FlowRun, meanwhile: Callable[[], None] | None = None) -> str:
        """Run one flow run to the end of its machine; `meanwhile` happens once its cluster is there."""

        async def work(worker: SkyWorker) -> None:
            running = asyncio.create_task(worker.run(run, await worker.configuration_of(run)))
            if meanwhile is not None:
                while self.cluster(run) not in self.sky.clusters():
                    await asyncio.sleep(0.01)
                await asyncio.to_thread(meanwhile)
            await running

        self.in_worker(work)
        return self.state(run)


@pytest.fixture
def runs(client: SyncPrefectClient, sky: FakeSky) -> Runs:
    return Runs(client, sky)


def test_an_attempt_is_one_cluster_of_what_was_named_and_it_is_taken_down_with_its_task(
    runs: Runs, sky: FakeSky, tmp_path: Path
) -> None:
    (tmp_path / "project").mkdir()
    run = runs.create(
        instance_type="g2-standard-4",
        accelerators="L4:1",
        use_spot=True,
        disk_gib=100,
        workdir=str(tmp_path / "project"),
        venv="~/venv",
        env={**ELSEWHERE, "TOKEN": "very-secret"},
    )
    state = runs.run(run, lambda: sky.set(runs.cluster(run), job="FAILED"))
    assert state.startswith(f"CRASHED TaskEnded: the task of cluster {runs.cluster(run)} ended (FAILED)")
    assert "No module named prefect" in state
    ((name, task, idle_minutes, down),) = sky.launched()
    assert (name, idle_minutes, down) == (runs.cluster(run), 10, True)
    assert task["resources"] == {
        "infra": "gcp/us-central1",
        "instance_type": "g2-standard-4",
        "accelerators": "L4:1",
        "use_spot": True,
        "disk_size": 100,
    }
    assert task["workdir"] == str(tmp_path / "project")
    assert task["run"].endswith("exec python -m crucible.agent.entrypoint -- python -m prefect.engine")
    assert "very-secret" not in str({**task, "secrets": None})
    assert task["secrets"]["TOKEN"] == "very-secret"
    assert task["secrets"]["PREFECT__FLOW_RUN_ID"] == str(run.id)
    assert sky.downed() == [runs.cluster(run)]


def test_where_there_are_too_few_machines_for_a_range_the_least_of_it_is_asked_for(runs: Runs, sky: FakeSky) -> None:
    sky.trouble("up", "ResourcesUnavailableError", "no capacity", from_nodes=4)
    run = runs.create(nodes="2..4")

    def end() -> None:
        until(lambda: len(sky.launched()) == 2, 20)
        sky.set(runs.cluster(run), job="SUCCEEDED")

    assert runs.run(run, end).startswith("CRASHED TaskEnded")
    assert [task["num_nodes"] for _, task, *_ in sky.launched()] == [4, 2]


def test_a_cluster_that_came_up_while_the_api_server_was_away_goes_on(runs: Runs, sky: FakeSky) -> None:
    sky.trouble("up", "ApiServerConnectionError", "Could not connect to SkyPilot API server")
    run = runs.create()

    def end() -> None:
        time.sleep(1)  # many looks later
        sky.set(runs.cluster(run), job="SUCCEEDED")

    assert runs.run(run, end).startswith(
        f"CRASHED TaskEnded: the task of cluster {runs.cluster(run)} ended (SUCCEEDED)"
    )


def test_each_machine_of_a_cluster_runs_its_part_of_the_attempt(tmp_path: Path) -> None:
    (tmp_path / "python").write_text(
        '#!/bin/sh\necho "$* of $CRUCIBLE_NODES at $CRUCIBLE_NODE_ADDRESS, number ${CRUCIBLE_NODE_RANK:-0}"\n'
    )
    (tmp_path / "python").chmod(0o755)
    script = SkyJobConfiguration(infra="gcp", nodes="2..4", venv="").script()
    given = {
        "PATH": f"{tmp_path}:/usr/bin:/bin",
        "SKYPILOT_NUM_NODES": "2",
        "SKYPILOT_NODE_IPS": "10.0.0.1\n10.0.0.2",
    }
    printed = [
        subprocess.run(
            ["sh", "-c", script], env={**given, "SKYPILOT_NODE_RANK": rank}, capture_output=True, text=True, check=True
        ).stdout.strip()
        for rank in ("0", "1")
    ]
    assert printed == [
        "-m crucible.agent.entrypoint -- python -m prefect.engine of 2 at 10.0.0.1, number 0",
        "-m tasks.node of 2 at 10.0.0.2, number 1",
    ]


@pytest.mark.parametrize(
    ("life", "end_reason"),
    [(alive_for(10), EndReason.LOST), ([], EndReason.NOT_STARTED)],
    ids=["it trains, and has saved nothing", "its attempt has not begun"],
)
def test_a_cluster_that_is_gone_without_a_save_is_lost_and_the_next_begins_again(
    runs: Runs, sky: FakeSky, store: Store, life: Life, end_reason: EndReason
) -> None:
    run = runs.create()

    def lose() -> None:
        runs.client.set_flow_run_state(run.id, Running(), force=True)
        sky.lose(runs.cluster(run))

    assert runs.run(run, lose).startswith("CRASHED ClusterLost: cluster crucible-")

    # What follows from that state for the job, by a clock of its own
    job, world, listening = new_job(store), World(), Listening()
    launcher = PrefectLauncher(store.uri, "test", "")
    launcher._runs[1] = runs.read(run)
    hint = launcher.hint(job, Launch(number=1, pool="skypilot", reason="test"))
    pool = Pool(world, {1: life, 2: alive_for(5, (6, ends("completed")))}, hints={1: hint})
    supervision = Supervision(
        job, pool, [Placement("skypilot")], listener=listening, sleep=world.sleep, clock=world.clock
    )
    assert supervision.run().state is JobState.COMPLETED
    outcome, start = job.attempt(1).read_outcome(), job.attempt(2).read_start()
    assert outcome is not None
    assert start is not None
    assert (outcome.end_reason, outcome.committed_step, start.step) == (end_reason, 0, 0)
    assert "ClusterLost: cluster crucible-" in outcome.message
    (message,) = (said for said in listening.messages if said.startswith("attempt 2 goes to skypilot"))
    assert "its cloud reclaimed it, or somebody took it down" in message


def test_a_cancelled_attempt_is_asked_through_the_store_and_its_cluster_goes_after_the_grace(
    runs: Runs, sky: FakeSky, tmp_path: Path
) -> None:
    store = store_at(str(tmp_path / "store"))
    job = Job.create(store, JobSpec(job_id="nano", config=TrainConfig(), total_steps=10))
    run = runs.create({"job": "nano", "attempt": 1, "store": store.uri}, infra="slurm/alpha/gpu", grace_seconds=1)

    def cancel() -> None:
        runs.client.set_flow_run_state(run.id, Cancelling(), force=True)

    assert runs.run(run, cancel).startswith("CANCELLED Cancelled: Its cluster has ended")
    request = job.attempt(1).read_stop_request()
    assert request is not None
    assert (request.end_reason, request.reason) == (EndReason.CANCELLED, "cancelled in Prefect")
    assert sky.downed() == [runs.cluster(run)]


def test_a_run_that_is_cancelled_while_its_cluster_comes_up_costs_nothing_more(runs: Runs, sky: FakeSky) -> None:
    (sky.root / "slow").touch()
    run = runs.create()

    def cancel() -> None:
        runs.client.set_flow_run_state(run.id, Cancelling(), force=True)
        while not sky.downed():
            pass
        (sky.root / "slow").unlink()

    assert runs.run(run, cancel).startswith("CANCELLED")
    assert (sky.root / "cancelled").read_text().split() == [f"launch-{runs.cluster(run)}"]
    assert not sky.clusters()


def test_launching_twice_gives_one_cluster_which_the_next_worker_finds_and_abandoned_ones_go(
    runs: Runs, sky: FakeSky, caplog: pytest.LogCaptureFixture
) -> None:
    run, deleted = runs.create(), runs.create()

    async def start(worker: SkyWorker) -> None:
        for one in (run, run, deleted):
            await worker.start_machine(one, await worker.configuration_of(one))

    runs.in_worker(start)
    assert [name for name, *_ in sky.launched()] == [runs.cluster(run), runs.cluster(deleted)]
    runs.client.delete_flow_run(deleted.id)
    sky.set("somebody-elses")
    sky.set(f"crucible-00000000-{uuid4().hex}-0")
    runs.client.update_work_pool(
        runs.pool.name,
        _with_defaults(runs.pool.base_job_template, sky_python=str(sky.python)),
    )

    async def recover(worker: SkyWorker) -> None:
        # At once, as when the heartbeat of another worker does the same.
        await asyncio.gather(worker.end_abandoned({run.id}), worker.end_abandoned({run.id}))
        watching = asyncio.create_task(worker.take_over(run))
        while runs.read(run).infrastructure_pid != pid_of("skypilot", runs.cluster(run)):
            await asyncio.sleep(0.01)
        await worker.kill_infrastructure(pid_of("skypilot", runs.cluster(run)), await worker.configuration_of(run))
        await watching

    runs.in_worker(recover, name="another")
    assert sky.downed() == [runs.cluster(deleted), runs.cluster(run)]
    assert len(sky.clusters()) == 2
    assert runs.state(run).startswith("CRASHED ClusterLost")
    assert "which costs money: its flow run is over" in caplog.text


def _with_defaults(template: dict[str, Any], **values: Any) -> Any:
    from prefect.client.schemas.actions import WorkPoolUpdate

    for name, value in values.items():
        template["variables"]["properties"][name]["default"] = value
    return WorkPoolUpdate(base_job_template=template)


def test_a_person_sees_which_clouds_there_are_and_which_machines_are_kept(
    sky: FakeSky, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("crucible.pools.skypilot.environment.python_of", lambda: sky.python)
    sky.set("crucible-1-2-0", launched_at=1)
    sky.set("mine")
    status(api_server="")
    shown = capsys.readouterr().out
    assert "SkyPilot 0.14.1 has access to gcp, lambda" in shown
    assert "crucible-1-2-0  UP  1x(gpus=L4:1" in shown
    assert "1 machines of Crucible's are kept; each costs money" in shown
    assert "mine" not in shown


# What cannot work is said in one message, and nothing is launched

WRONG_FIELDS: list[tuple[dict[str, Any], str]] = [
    ({"infra": "gpc/us-central1"}, "job variable infra: SkyPilot knows no cloud 'gpc'; it knows aws, azure"),
    ({"infra": "gcp us-central1"}, "job variable infra: write a cloud"),
    ({"infra": ""}, "infra is not set: name a cloud"),
    ({"infra": "lambda", "use_spot": True}, "use_spot: lambda has no spot machines"),
    ({"accelerators": "one L4"}, "job variable accelerators: write a type and a number"),
    ({"instance_type": "g2; reboot"}, "job variable instance_type: write one name"),
    ({"nodes": "4..2"}, "nodes = '4..2' must be how many machines"),
    ({"cpus": "many"}, "job variable cpus: write a number"),
    ({"memory": "16GB"}, "job variable memory: write a number"),
    ({"disk_gib": 0}, "job variable disk_gib"),
    ({"autostop_minutes": 0}, "job variable autostop_minutes"),
    ({"api_server": "sky.example.org"}, "job variable api_server: write an address"),
    ({"workdir": "/no/such/folder"}, "workdir: there is no folder '/no/such/folder'"),
    ({"env": {**ELSEWHERE, "not a name": "x"}}, "'not a name' is not the name of an environment variable"),
    ({"env": {"PREFECT_API_URL": "http://127.0.0.1:4200/api"}}, "a machine on gcp cannot reach http://127.0.0.1:4200"),
    ({"sky_python": "/no/python"}, "SkyPilot is not installed: sky_python is '/no/python'"),
]


@pytest.mark.parametrize(("fields", "words"), WRONG_FIELDS, ids=lambda value: str(value)[:40])
def test_what_cannot_work_is_refused_in_one_message(
    sky: FakeSky, fields: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    template = SkyWorker.get_default_base_job_template()
    usual = {"infra": "gcp/us-central1", "sky_python": str(sky.python), "env": ELSEWHERE}
    run = FlowRun(flow_id=uuid4())
    worker = SkyWorker(work_pool_name="none", name="sky-1")
    monkeypatch.setattr(SkyWorker, "work_pool", type("Pool", (), {"id": uuid4()}))

    async def start() -> None:
        made = await SkyJobConfiguration.from_template_and_values(template, {**usual, **fields}, client=object())
        await worker.start_machine(run, made)

    with pytest.raises(CrucibleError) as caught:
        asyncio.run(start())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert not sky.launched()


def test_a_store_on_this_machine_is_out_of_reach_of_a_cloud(runs: Runs, sky: FakeSky, tmp_path: Path) -> None:
    run = runs.create({"job": "nano", "attempt": 1, "store": f"file://{tmp_path}/store"})
    assert runs.run(run).startswith(f"CRASHED OutOfReach: store: a machine on gcp cannot reach file://{tmp_path}/store")
    assert not sky.launched()


TROUBLE: list[tuple[str, str, str, str, str]] = [
    ("up", "ValueError", "Failed to get partitions for cluster alpha", "LaunchFailed", "could not do it (ValueError)"),
    (
        "up",
        "ResourcesUnavailableError",
        "Failed to provision. Quota 'GPUS_ALL_REGIONS' exceeded. Limit: 0.0 globally.",
        "QuotaExceeded",
        "the account has no quota",
    ),
    (
        "up",
        "ResourcesUnavailableError",
        "Quota exceeded for quota metric 'Queries' and limit 'Queries per minute' of service 'compute.googleapis.com'",
        "LaunchFailed",
        "try again later",
    ),
    (
        "up",
        "ResourcesUnavailableError",
        "An error occurred (RequestLimitExceeded) when calling the RunInstances operation: Request limit exceeded.",
        "LaunchFailed",
        "try again later",
    ),
    ("up", "HttpError", "rateLimitExceeded: Operation rate exceeded for resource", "LaunchFailed", "try again later"),
    (
        "up",
        "ResourcesUnavailableError",
        "(MaxSpotInstanceCountExceeded) when calling the RunInstances operation: Max spot instance count exceeded",
        "QuotaExceeded",
        "the account has no quota",
    ),
    (
        "up",
        "ResourcesUnavailableError",
        "(VcpuLimitExceeded): You have requested more vCPU capacity than your current vCPU limit of 0 allows",
        "QuotaExceeded",
        "the account has no quota",
    ),
    (
        "up",
        "ResourcesUnavailableError",
        "The zone 'projects/quota-lab/zones/us-central1-a' does not have enough resources available",
        "NoCapacity",
        "no such machine free",
    ),
    (
        "up",
        "ResourcesUnavailableError",
        "Allocation failed. We do not have sufficient capacity for the requested VM size in this region.",
        "NoCapacity",
        "no such machine free",
    ),
    (
        "up",
        "ResourcesUnavailableError",
        "ZONE_RESOURCE_POOL_EXHAUSTED_WITH_DETAILS",
        "NoCapacity",
        "no such machine free",
    ),
    (
        "up",
        "ResourcesUnavailableError",
        "Task requires gcp which is not enabled. To enable access, run: sky check gcp",
        "NoCredentials",
        "set up its credentials",
    ),
    (
        "up",
        "NoCloudAccessError",
        "No cloud access is set up. Run: sky check",
        "NoCredentials",
        "set up its credentials",
    ),
    ("task", "ValueError", "Invalid instance type 'g9-huge' for cloud GCP.", "RequestRefused", "no such instance type"),
    ("task", "ValueError", "Invalid region 'mars'", "RequestRefused", "no such region or zone"),
    (
        "up",
        "ResourcesUnavailableError",
        "Catalog does not contain any instances satisfying the request",
        "RequestRefused",
        "no such machine; change instance_type",
    ),
    (
        "up",
        "ConnectionError",
        "HTTPSConnectionPool(host='raw.githubusercontent.com', port=443)",
        "CatalogMissing",
        "could not download its catalog",
    ),
    (
        "launch",
        "ApiServerConnectionError",
        "Could not connect to SkyPilot API server at https://sky.example.org.",
        "ApiServerUnreachable",
        "API server does not answer",
    ),
    (
        "launch",
        "RuntimeError",
        "Failed to start SkyPilot API server at http://127.0.0.1:46580",
        "ApiServerUnreachable",
        "does not come up",
    ),
    ("launch", "ApiServerAuthenticationError", "Authentication required", "ApiServerRefused", "sky api login"),
    ("launch", "APIVersionMismatchError", "client is newer", "ApiServerRefused", "crucible sky setup --version"),
    ("up", "ClusterSetUpError", "rsync failed", "NotPrepared", "could not prepare the machine"),
]


@pytest.mark.parametrize(
    ("kind", "message", "state", "words"),
    [row[1:] for row in TROUBLE],
    ids=[f"{row[3]}-{n}" for n, row in enumerate(TROUBLE)],
)
def test_every_refusal_has_a_state_and_words(kind: str, message: str, state: str, words: str) -> None:
    failure = classify(kind, message)
    assert (failure.state_name, "\n" in str(failure)) == (state, False)
    assert words in str(failure)
    assert message[:40] in str(failure)


def test_what_a_cloud_refuses_zone_by_zone_is_told_and_nothing_is_left_behind(runs: Runs, sky: FakeSky) -> None:
    sky.trouble(
        "up",
        "ResourcesUnavailableError",
        "Failed to provision all possible launchable resources.",
        "us-central1-a: Quota 'NVIDIA_L4_GPUS' exceeded",
    )
    run = runs.create()
    state = runs.run(run)
    assert state.startswith("CRASHED QuotaExceeded: the account has no quota for such a machine")
    assert "us-central1-a" in state
    assert sky.downed() == [runs.cluster(run)]
