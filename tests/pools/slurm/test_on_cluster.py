"""What the pool does on a real Slurm: submit, find again, pass on why a job ends, refuse. One file, one cluster."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import Callable, Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar
from uuid import uuid4

import psutil
import pytest
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.actions import WorkPoolCreate
from prefect.client.schemas.objects import FlowRun
from prefect.settings import PREFECT_API_URL, PREFECT_WORKER_QUERY_SECONDS, temporary_settings
from prefect.states import Cancelled, Cancelling, Pending

from crucible.agent.sources import sources_of_this_machine
from crucible.errors import ConfigError, CrucibleError
from crucible.pools.common.machines import pid_of
from crucible.pools.slurm import script
from crucible.pools.slurm.cluster import Cluster, Submission
from crucible.pools.slurm.configuration import SlurmJobConfiguration
from crucible.pools.slurm.failures import JobView
from crucible.pools.slurm.inventory import read_inventory
from crucible.pools.slurm.script import LISTEN_SECONDS
from crucible.pools.slurm.setup import SlurmSetup, pool_settings
from crucible.pools.slurm.shell import Shell
from crucible.pools.slurm.worker import SlurmJob, SlurmWorker
from crucible.rehearsal.slurm.cluster import PREEMPTION_GRACE_SECONDS, LocalCluster
from tasks.node import attempt_of_flow_run
from tests.pools.slurm.conftest import KILL_WAIT_SECONDS

WAIT_SECONDS = 120.0
T = TypeVar("T")
STOP = "$CRUCIBLE_STOP_FILE"
SHOW_STOP_FILE = f"sh -c 'trap \"\" TERM; echo ready; while [ ! -e {STOP} ]; do sleep 0.1; done; cat {STOP}'"
STEADY = "sh -c 'echo ready; exec sleep 600'"


def until(holds: Callable[[], T | None], what: str) -> T:
    deadline = time.monotonic() + WAIT_SECONDS
    while not (found := holds()):
        assert time.monotonic() < deadline, f"waited in vain for {what}"
        time.sleep(0.1)
    return found


class Jobs:
    """Submits jobs as the worker does, and waits for them."""

    def __init__(self, cluster: LocalCluster, logs: Path) -> None:
        self.cluster, self.logs, self.slurm = cluster, logs, Cluster(Shell())

    def configuration(self, command: str, **fields: Any) -> SlurmJobConfiguration:
        given = {"partition": "spot", "workdir": str(self.logs.parent), "log_folder": str(self.logs), "cpus": 1}
        graces = {
            "preemption_seconds": PREEMPTION_GRACE_SECONDS + KILL_WAIT_SECONDS,
            "kill_seconds": KILL_WAIT_SECONDS,
            "poll_seconds": 0.2,
            "grace_seconds": 5,
        }
        return SlurmJobConfiguration(command=command, **(given | graces | fields))

    async def submit(self, command: str, name: str = "", env: dict[str, str] | None = None, **fields: Any) -> str:
        configuration = self.configuration(command, **fields)
        return await self.slurm.submit(
            Submission(
                name=name or f"test-{uuid4().hex[:8]}",
                comment=f"{uuid4()}:0:{uuid4()}",
                options=configuration.options(),
                script=configuration.script(),
                environment=env or {},
                workdir=configuration.workdir,
                log_folder=configuration.log_folder,
            )
        )

    def start(self, command: str, **fields: Any) -> str:
        """Submit a job and wait until it has printed `ready`."""
        job_id = asyncio.run(self.submit(command, **fields))
        until(lambda: "ready" in self.output(job_id), f"job {job_id} to run")
        return job_id

    def output(self, job_id: str) -> str:
        return "".join(path.read_text() for path in self.logs.glob(f"*-{job_id}.out"))

    def show(self, job_id: str) -> JobView:
        job = asyncio.run(self.slurm.show(job_id))
        assert job is not None
        return job

    def end(self, job_id: str) -> JobView:
        def over() -> JobView | None:
            job = self.show(job_id)
            return job if job.over else None

        return until(over, f"the end of job {job_id}")

    def node(self, job_id: str) -> str:
        return next(node for known, _, node in self.cluster.jobs() if known == job_id)


@pytest.fixture
def jobs(cluster: LocalCluster, logs: Path) -> Jobs:
    return Jobs(cluster, logs)


# Why a job ends, as the agent learns it


def is_listening() -> bool:
    """Whether a job's listening step has come as far as its `sleep`; before that a signal would end it unheard."""
    for process in psutil.process_iter(["cmdline", "ppid"]):
        if (process.info["cmdline"] or [])[-1:] == [str(LISTEN_SECONDS)]:
            with contextlib.suppress(psutil.Error):
                if "listen" in psutil.Process(process.info["ppid"]).cmdline():
                    return True
    return False


def preempt(jobs: Jobs, job_id: str) -> None:
    until(is_listening, "the listening step")
    jobs.cluster.preempt(jobs.node(job_id), seconds=0.1)


def scancel(jobs: Jobs, job_id: str) -> None:
    jobs.cluster.call("scancel", job_id)


def ask(jobs: Jobs, job_id: str) -> None:
    asyncio.run(jobs.slurm.signal_batch(job_id, "TERM"))


def cancel_in_prefect(jobs: Jobs, job_id: str) -> None:
    asyncio.run(jobs.slurm.signal_batch(job_id, "USR1"))


@pytest.mark.parametrize(
    ("strike", "source", "reason", "seconds"),
    [
        (preempt, "slurm", "Slurm preempts job", PREEMPTION_GRACE_SECONDS + KILL_WAIT_SECONDS),
        (scancel, "person", "cancelled with scancel", KILL_WAIT_SECONDS),
        (ask, "slurm", "asked to stop", 5),
        (cancel_in_prefect, "person", "cancelled in Prefect", 5),
    ],
    ids=["preempt", "scancel", "ask", "cancel"],
)
def test_the_agent_learns_why_its_job_ends_and_how_much_time_is_left(
    jobs: Jobs, strike: Callable[[Jobs, str], None], source: str, reason: str, seconds: float
) -> None:
    job_id = jobs.start(SHOW_STOP_FILE)
    struck_at = time.time()
    strike(jobs, job_id)
    jobs.end(job_id)
    written = json.loads(next(line for line in jobs.output(job_id).splitlines() if line.startswith("{")))
    assert written["source"] == source
    assert reason in written["reason"]
    assert struck_at + seconds - 2 <= written["deadline"] <= time.time() + seconds


def test_the_time_limit_is_known_from_the_start(jobs: Jobs) -> None:
    job_id = jobs.start("sh -c 'env; echo ready'", partition="short")
    given = dict(line.split("=", 1) for line in jobs.output(job_id).splitlines() if line.startswith("CRUCIBLE_"))
    assert 40 <= float(given["CRUCIBLE_MACHINE_ENDS_AT"]) - time.time() <= 60
    (lifetime,) = [source for source in sources_of_this_machine(given) if type(source).__name__ == "MachineLifetime"]
    assert 5 <= lifetime.margin_seconds <= 12
    assert jobs.end(job_id).exit_code == 0


def test_secrets_reach_the_job_and_nobody_else(jobs: Jobs, tmp_path: Path) -> None:
    job_id = jobs.start(
        "sh -c 'echo got $TOKEN; echo ready; exec sleep 60'", env={"TOKEN": "very-\"secret'", "EMPTY": ""}
    )
    script = tmp_path / "script"
    jobs.cluster.call("scontrol", "write", "batch_script", job_id, str(script))
    commands = [path.read_bytes() for path in Path("/proc").glob("[0-9]*/cmdline") if path.exists()]
    shown = jobs.cluster.call("scontrol", "show", "job", "-dd", job_id)
    jobs.cluster.call("scancel", job_id)
    assert "got very-\"secret'" in jobs.output(job_id)
    assert "very-" not in script.read_text() + shown
    assert not any(b'very-"secret' in command for command in commands)


def test_a_successor_waits_until_the_attempt_before_has_ended(jobs: Jobs) -> None:
    first = jobs.start(STEADY, name="crucible-one")
    second = asyncio.run(jobs.submit("true", name="crucible-one"))
    assert until(lambda: jobs.show(second).reason, "a reason") == "Dependency"
    assert jobs.show(first).state == "RUNNING"
    jobs.cluster.call("scancel", first, second)


def test_of_a_range_of_nodes_those_that_there_are_train(jobs: Jobs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(script, "FURTHER_NODE", "sh -c 'echo node $CRUCIBLE_NODE_RANK of $CRUCIBLE_NODES'")
    job_id = jobs.start("sh -c 'echo ready, $CRUCIBLE_NODES nodes'", nodes="2..4")
    assert jobs.end(job_id).exit_code == 0
    assert sorted(jobs.output(job_id).split("\n")) == ["", "node 1 of 2", "ready, 2 nodes"]


# The worker


@pytest.fixture(scope="module")
def client(prefect_server: Any) -> Iterator[SyncPrefectClient]:
    with (
        temporary_settings({PREFECT_API_URL: prefect_server.api_url, PREFECT_WORKER_QUERY_SECONDS: 0.5}),
        get_client(sync_client=True) as client,
    ):
        yield client


@pytest.fixture
def pool(client: SyncPrefectClient) -> str:
    """A pool of its own: the worker of one test must not look after the jobs of another."""
    name = f"slurm-{uuid4().hex[:8]}"
    client.create_work_pool(
        WorkPoolCreate(name=name, type="slurm", base_job_template=SlurmWorker.get_default_base_job_template())
    )
    return name


class Runs:
    """Flow runs of a pool, run by a worker in this process."""

    def __init__(self, jobs: Jobs, client: SyncPrefectClient, pool: str) -> None:
        self.jobs, self.client, self.pool = jobs, client, pool

    def create(self, command: str, **fields: Any) -> FlowRun:
        made = self.jobs.configuration(command, **fields).model_dump(exclude_unset=True)
        deployment = self.client.create_deployment(
            flow_id=self.client.create_flow_from_name("on-slurm"),
            name=f"test-{uuid4().hex[:8]}",
            work_pool_name=self.pool,
            job_variables=made,
        )
        run = self.client.create_flow_run_from_deployment(deployment)
        self.client.set_flow_run_state(run.id, Pending(), force=True)
        return self.read(run)

    def read(self, run: FlowRun) -> FlowRun:
        return self.client.read_flow_run(run.id)

    def state(self, run: FlowRun) -> str:
        state = self.read(run).state
        assert state is not None
        return f"{state.type.value} {state.name}: {state.message}"

    def in_worker(self, work: Callable[[SlurmWorker], Coroutine[Any, Any, T]], name: str = "slurm-1") -> T:
        async def within() -> T:
            async with SlurmWorker(work_pool_name=self.pool, name=name) as worker:
                await SlurmWorker.__mro__[2].sync_with_backend(worker)  # a heartbeat without what follows from it
                return await work(worker)

        return asyncio.run(within())

    def job_of(self, run: FlowRun) -> str:
        comment = f"{run.id}:"
        listed = self.jobs.cluster.call("squeue", "-h", "-t", "all", "-o", "%i|%k").splitlines()
        return next((line.split("|")[0] for line in listed if line.split("|")[1].startswith(comment)), "")


@pytest.fixture
def runs(jobs: Jobs, client: SyncPrefectClient, pool: str) -> Runs:
    return Runs(jobs, client, pool)


async def run_all(worker: SlurmWorker, runs: list[FlowRun]) -> None:
    configurations = [await worker.configuration_of(run) for run in runs]
    await asyncio.gather(*(worker.run(run, made) for run, made in zip(runs, configurations, strict=True)))


@pytest.fixture
def closed(cluster: LocalCluster) -> Iterator[str]:
    """A partition for an account that nobody here has. Made for each test: a controller that restarts forgets it."""
    cluster.call("scontrol", "create", "PartitionName=closed", "Nodes=ALL", "AllowAccounts=lab")
    yield "closed"
    cluster.call("scontrol", "delete", "PartitionName=closed")


def test_every_end_of_a_job_is_a_state_of_its_run_with_words(runs: Runs, closed: str) -> None:
    expected = {
        runs.create(
            "sh -c 'echo trouble; exit 3'"
        ).id: "CRASHED JobExited: the command of Slurm job {} ended with exit",
        runs.create("no-such-program").id: "CRASHED CommandNotFound: the command of Slurm job {} was not found on n",
        runs.create(
            "true", partition="short", time_limit_minutes=5
        ).id: "CRASHED SubmissionRefused: time_limit_minutes: 5 is over the maximum of partition short, 1",
        runs.create("true", partition="nosuch").id: "CRASHED SubmissionRefused: there is no such partition",
        runs.create("true", partition=closed).id: "CRASHED NeverStarts: Slurm job {} would never start: "
        "its account may not use the partition; set account",
        runs.create("sh -c 'scancel $SLURM_JOB_ID; sleep 60'").id: "CANCELLED Cancelled: Slurm job {} was cancelled",
    }
    found = [runs.client.read_flow_run(run_id) for run_id in expected]
    runs.in_worker(lambda worker: run_all(worker, found))
    for run in found:
        assert runs.state(run).startswith(expected[run.id].format(runs.job_of(run)))
    assert "trouble" in runs.state(found[0])
    assert not [job for job in runs.jobs.cluster.jobs() if job[0] in map(runs.job_of, found)]


def test_a_further_node_finds_its_attempt_by_its_flow_run(
    client: SyncPrefectClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    flow = client.create_flow_from_name("train")
    run = client._client.post(  # a run without a deployment, whose code nobody needs
        "/flow_runs/", json={"flow_id": str(flow), "parameters": {"job": "j", "attempt": 3, "store": "file:///s"}}
    )
    monkeypatch.setenv("PREFECT__FLOW_RUN_ID", run.json()["id"])
    assert attempt_of_flow_run() == ("file:///s", "j", 3)


def test_submitting_twice_gives_one_job_which_the_next_worker_finds(runs: Runs) -> None:
    run = runs.create(STEADY)
    deleted = runs.create(STEADY)

    async def submit(worker: SlurmWorker) -> list[str]:
        starts = [await worker.start_machine(r, await worker.configuration_of(r)) for r in (run, run, deleted)]
        return [machine.name for machine in starts]

    first, again, orphan = runs.in_worker(submit)
    assert first == again
    until(lambda: runs.jobs.show(orphan).state == "RUNNING", "the orphan to run")
    runs.client.delete_flow_run(deleted.id)

    async def recover(worker: SlurmWorker) -> None:
        watching = asyncio.create_task(worker.take_over(run))
        await worker.end_abandoned({run.id})
        while runs.read(run).infrastructure_pid != pid_of("slurm", first):
            await asyncio.sleep(0.1)
        await worker.kill_infrastructure(pid_of("slurm", first), await worker.configuration_of(run))
        await watching

    runs.in_worker(recover, name="another")
    assert runs.jobs.end(orphan).state == "CANCELLED"
    assert runs.state(run).startswith(f"CANCELLED Cancelled: Slurm job {first} was cancelled")


def test_cancelling_in_prefect_ends_the_job_running_or_queued(runs: Runs) -> None:
    saving = runs.create(SHOW_STOP_FILE)
    frozen = runs.create("sh -c 'trap \"\" TERM; echo ready; sleep 600'", grace_seconds=1)
    queued = runs.create(STEADY, extra_flags=["--begin=now+1hour"])
    found = [saving, frozen, queued]

    async def cancel_them(worker: SlurmWorker) -> None:
        running = asyncio.create_task(run_all(worker, found))
        while not all("ready" in runs.jobs.output(runs.job_of(run) or "none") for run in found[:2]):
            await asyncio.sleep(0.2)
        while "Queued: Slurm job" not in runs.state(queued):
            await asyncio.sleep(0.2)
        assert "its begin time has not come" in runs.state(queued)
        for run in (saving, frozen):
            runs.client.set_flow_run_state(run.id, Cancelling(), force=True)
        runs.client.set_flow_run_state(queued.id, Cancelled(), force=True)
        await running

    runs.in_worker(cancel_them)
    assert all(runs.state(run).startswith("CANCELLED") for run in found)
    assert "cancelled in Prefect" in runs.jobs.output(runs.job_of(saving))
    assert runs.jobs.end(runs.job_of(queued)).state == "CANCELLED"
    assert runs.jobs.end(runs.job_of(frozen)).state == "CANCELLED"


def test_a_job_outlasts_the_controllers_absence(runs: Runs) -> None:
    run = runs.create("sh -c 'echo ready; while [ ! -e go ]; do sleep 0.1; done; exit 3'")
    cluster = runs.jobs.cluster

    async def without_controller(worker: SlurmWorker) -> None:
        configuration = await worker.configuration_of(run)
        machine = await worker.start_machine(run, configuration)
        assert isinstance(machine, SlurmJob)
        until(lambda: "ready" in runs.jobs.output(machine.name), "the job to run")
        cluster.stop_controller()
        watching = asyncio.create_task(worker.watch(run, 0, configuration, machine))
        await asyncio.sleep(1)
        cluster.start_controller()
        (runs.jobs.logs.parent / "go").touch()  # a job that ends meanwhile reports that up to a minute later
        await watching

    runs.in_worker(without_controller)
    assert runs.state(run).startswith("CRASHED JobExited: the command of Slurm job")


# What cannot work is said in one message, and nothing is submitted

WRONG: list[tuple[dict[str, Any], str]] = [
    ({"partition": "nosuch"}, "there is no such partition"),
    ({"gpus": "a100:1"}, "change gpus"),
    ({"gpus": "99"}, "change gpus"),
    ({"gpus": "many"}, "job variable gpus: write a number"),
    ({"nodes": "4..2"}, "nodes = '4..2' must be how many machines"),
    ({"cpus": 0}, "job variable cpus"),
    ({"memory_mib": 999_999_999}, "lower memory_mib"),
    ({"constraint": "fancy"}, "change constraint"),
    ({"reservation": "mine"}, "the reservation cannot be used"),
    ({"time_limit_minutes": -5}, "job variable time_limit_minutes"),
    ({"time_limit_minutes": 5, "partition": "short"}, "5 is over the maximum of partition short, 1"),
    ({"account": "me", "partition": "closed"}, "me may not use partition closed (it allows lab)"),
    ({"account": "a b; rm -rf /"}, "job variable account: write a name"),
    ({"extra_flags": ["--wrap=reboot"]}, "'--wrap=reboot' is not among the options"),
    ({"extra_flags": ["--nodelist=nosuch"]}, "Invalid node name"),
    ({"extra_flags": ["--licenses=nosuch"]}, "Invalid license specification"),
    ({"extra_flags": ["--begin=never"]}, "Invalid --begin specification"),
    ({"extra_flags": ["nice"]}, "write an option as --name=value"),
    ({"workdir": "/no/such/folder"}, "workdir '/no/such/folder'"),
    ({"login_node": "-oProxyCommand=reboot"}, "job variable login_node: write user@host"),
    ({"login_node": "nosuch.invalid"}, "login_node"),
    ({"env": {"not a name": "x"}}, "'not a name' is not the name of an environment variable"),
]


@pytest.mark.parametrize(("fields", "words"), WRONG, ids=lambda value: str(value)[:30])
def test_what_cannot_work_is_refused_in_one_message(
    jobs: Jobs, closed: str, fields: dict[str, Any], words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = jobs.cluster.jobs()
    given = {"workdir": str(jobs.logs.parent), "log_folder": str(jobs.logs), **fields}
    template = SlurmWorker.get_default_base_job_template()
    worker = SlurmWorker(work_pool_name="none", name="slurm-1")
    monkeypatch.setattr(SlurmWorker, "work_pool", type("Pool", (), {"id": uuid4()}))

    async def submit() -> None:
        made = await SlurmJobConfiguration.from_template_and_values(template, given, client=object())
        await worker.start_machine(FlowRun(flow_id=uuid4()), made)

    with pytest.raises(CrucibleError) as caught:
        asyncio.run(submit())
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)
    assert jobs.cluster.jobs() == before


def test_without_slurm_the_message_says_where_it_looked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("sh", "id", "mkdir", "cat", "pwd", "echo"):
        if (found := next((p for p in (Path("/usr/bin") / name, Path("/bin") / name) if p.exists()), None)) is not None:
            (tmp_path / name).symlink_to(found)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(CrucibleError, match="no working Slurm commands on the worker's machine"):
        asyncio.run(Cluster(Shell()).list())
    with pytest.raises(CrucibleError, match="no working Slurm commands on the worker's machine"):
        asyncio.run(read_inventory(Shell()))


def test_setup_reads_partitions_limits_and_gpus_and_refuses_what_they_do_not_allow(cluster: LocalCluster) -> None:
    inventory = asyncio.run(read_inventory(Shell()))
    assert inventory.kill_wait_seconds == KILL_WAIT_SECONDS
    short = inventory.partition("short")
    assert (short.longest_seconds, short.preemptible, short.gpus) == (60, True, {"t4": 2})
    settings = pool_settings(SlurmSetup(account="lab"), inventory, inventory.partition(None))
    assert settings["partition"] == "spot"
    assert settings["time_limit_minutes"] == 24 * 60
    assert settings["preemption_seconds"] == PREEMPTION_GRACE_SECONDS + KILL_WAIT_SECONDS
    for wanted, words in (
        (SlurmSetup(time_limit_minutes=5), "jobs on short may take 1 minutes at most"),
        (SlurmSetup(gpus="3"), "a node of short has 2 t4"),
        (SlurmSetup(gpus="h100:1"), "a node of short has 2 t4"),
    ):
        with pytest.raises(ConfigError, match=words):
            pool_settings(wanted, inventory, short)
    with pytest.raises(ConfigError, match="no such partition; it has spot, short, urgent"):
        inventory.partition("nosuch")
