"""The image, the worker and the pool on a real engine. One file, so that one process has the engine to itself."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, TypeVar
from uuid import UUID, uuid4

import docker
import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.objects import FlowRun

from crucible.checkpoints.commits import Checkpoints
from crucible.config import TrainConfig
from crucible.contract import file_sha256
from crucible.datasets.build import build_dataset
from crucible.datasets.config import DatasetConfig
from crucible.datasets.fetch import fetch_dataset
from crucible.errors import ConfigError
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import EndReason, JobSpec, Launch
from crucible.local.docker import bring_up
from crucible.pools.docker.configuration import DockerGpuJobConfiguration
from crucible.pools.docker.images import PROJECT, Recipe, build, context_files, find
from crucible.pools.docker.own_image import own_recipe
from crucible.pools.docker.pool import PoolOptions, pool_template, register
from crucible.pools.docker.registry import push
from crucible.pools.docker.worker import DockerGpuWorker
from crucible.rehearsal.docker_engine import OwnEngine
from crucible.rehearsal.drill.docker_stage import docker_stage
from crucible.rehearsal.drill.drill import Drill
from crucible.rehearsal.drill.script import OwnScript
from crucible.resources import Resources
from crucible.store import Store
from tasks.launching import PrefectLauncher
from tests.conftest import PrefectServer
from tests.pools.docker.registry import Registry
from tests.tasks.standing.sitecustomize import DEATH, STANDING
from tests.tasks.training_on_nodes import Death, require_same_weights

SMALL = {"n_layer": 1, "n_embd": 32, "n_head": 2, "block_size": 32, "batch_size": 4, "eval_interval": 1_000_000}
# Which code multiplies is measured once for each CRUCIBLE_HOME; where two ways are about as fast, two homes may differ.
KERNELS = {"fast_gemm": "off", "threads": 1}
T = TypeVar("T")


@pytest.fixture
def client(engine: OwnEngine | None) -> Iterator[docker.DockerClient]:
    made = docker.from_env()
    yield made
    made.close()


def test_an_unchanged_tree_is_not_built_again(image: str) -> None:
    said: list[str] = []
    assert build(Recipe("cpu"), said.append) == image
    assert said == []


def test_a_change_of_code_installs_no_package_again(image: str, tmp_path: Path) -> None:
    for name, path in [*context_files(PROJECT), (".dockerignore", PROJECT / ".dockerignore")]:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, tmp_path / name)
    shutil.copy(PROJECT / "images" / "Dockerfile", tmp_path / "images" / "Dockerfile")
    with (tmp_path / "crucible" / "__init__.py").open("a") as file:
        file.write("CHANGED = True\n")
    said: list[str] = []
    changed = build(Recipe("cpu", tmp_path), said.append)
    assert changed != image
    steps = [line.split(" ", 1)[0] for line in said if "[packages-cpu " in line]
    assert steps
    assert all(f"{step} CACHED" in said for step in steps), "\n".join(said)
    assert find(Recipe("cpu", tmp_path)) == changed


def test_the_image_names_itself_and_holds_no_root(client: docker.DockerClient, image: str) -> None:
    config = client.images.get(image).attrs["Config"]
    assert f"CRUCIBLE_IMAGE={image.split(':')[1]}" in config["Env"]
    assert config["User"] == "10001:10001"
    assert config["Labels"]["org.opencontainers.image.revision"] not in ("", "unknown")


def test_a_container_writes_nowhere_but_where_it_may(client: docker.DockerClient, image: str) -> None:
    script = (
        "import os, pathlib\n"
        "def may(folder):\n"
        "    try: pathlib.Path(folder, 'x').write_text('x'); return True\n"
        "    except OSError: return False\n"
        "print(os.getuid(), [f for f in ('/', '/opt/crucible', '/opt/venv', '/tmp', '/etc', '/usr', '/var') if may(f)])"
    )
    settings = configuration(image, gpus="0").container_settings()
    output = client.containers.run(
        image, ["python", "-c", script], remove=True, **settings | {"user": "10001:10001", "restart_policy": None}
    )
    assert output.decode().strip() == "10001 ['/tmp']"


def test_no_start_compiles_python_anew(client: docker.DockerClient, image: str) -> None:
    """Bytecode that does not fit its source costs every process of every container four seconds of CPU."""
    command = ["python", "-v", "-c", "import prefect, torch"]
    said = client.containers.run(image, command, entrypoint="", stderr=True, remove=True).decode()
    assert "pyc matches" in said
    assert [line for line in said.splitlines() if "stale" in line] == []


def test_a_folders_own_dockerfile_gets_crucible_beside_its_programs(
    client: docker.DockerClient, image: str, tmp_path: Path
) -> None:
    program = "mkdir -p /opt/mine && printf '#!/bin/sh\\necho mine\\n' > /opt/mine/train && chmod 755 /opt/mine/train"
    dockerfile = tmp_path / "Dockerfile"
    dockerfile.write_text(f"FROM {image}\nUSER root\nRUN {program}\nENV PATH=/opt/mine:$PATH\nUSER 10001:10001\n")
    built = build(own_recipe(tmp_path, "Dockerfile"), print)
    look = "import os, subprocess, crucible; print(subprocess.check_output('train', env={'PATH': os.environ[NAME]}))"
    said = client.containers.run(
        built, ["-c", look.replace("NAME", "'CRUCIBLE_SCRIPT_PATH'")], entrypoint=["/opt/venv/bin/python"], remove=True
    )
    assert b"mine" in said
    dockerfile.write_text("FROM scratch\nCOPY Dockerfile /\n")
    with pytest.raises(ConfigError, match="no python3 that starts"):
        own_recipe(tmp_path, "Dockerfile")


def configuration(image: str, **variables: Any) -> DockerGpuJobConfiguration:
    """One flow run's, without a job."""
    template = pool_template(PoolOptions(image=image))
    made = asyncio.run(DockerGpuJobConfiguration.from_template_and_values(template, variables, client=object()))
    made.prepare_for_flow_run(FlowRun(id=uuid4(), flow_id=uuid4(), name=f"test-{uuid4().hex[:8]}"))
    return made


@pytest.mark.parametrize(
    ("gpus", "request_"), [("all", {"Count": -1}), ("device=0,1", {"Count": 0, "DeviceIDs": ["0", "1"]})]
)
def test_the_gpu_request_reaches_the_engine(
    client: docker.DockerClient, image: str, gpus: str, request_: dict[str, Any]
) -> None:
    worker = DockerGpuWorker(work_pool_name="docker-gpu")
    wanted = configuration(image, gpus=gpus)
    container = worker._create_container(client, **worker._build_container_settings(client, wanted))
    try:
        (asked,) = container.attrs["HostConfig"]["DeviceRequests"]
        assert asked["Capabilities"] == [["gpu"]]
        assert request_.items() <= asked.items()
        assert container.attrs["Config"]["StopTimeout"] == wanted.stop_timeout_seconds
    finally:
        container.remove()


def test_an_engine_without_gpus_is_told_in_words_and_nothing_stays_behind(
    client: docker.DockerClient, image: str, prefect_api: str
) -> None:
    if "nvidia" in client.info()["Runtimes"]:
        pytest.skip("this engine hands out GPUs")
    wanted = configuration(image, gpus="all")
    with pytest.raises(ConfigError, match=r"gpus: 'all'.*NVIDIA Container Toolkit.*gpus: 0.*could not select device"):
        DockerGpuWorker(work_pool_name="docker-gpu")._create_and_start_container(wanted)
    run = wanted.labels["io.prefect.flow-run-id"]
    assert client.containers.list(all=True, filters={"label": f"io.prefect.flow-run-id={run}"}) == []


def test_a_missing_image_is_told_in_words(engine: OwnEngine | None, prefect_api: str) -> None:
    wanted = configuration("crucible:cpu-000000000000", gpus="0", image_pull_policy="Never")
    with pytest.raises(ConfigError, match="crucible images build"):
        DockerGpuWorker(work_pool_name="docker-gpu")._create_and_start_container(wanted)


def test_push_leaves_the_image_in_the_registry(engine: OwnEngine | None) -> None:
    small = Recipe("cpu", dockerfile=PROJECT / "tests" / "pools" / "docker" / "small.Dockerfile")
    build(small, print)
    with Registry() as registry:
        reference = push(small, f"{registry.address}/crucible", None, print)
        assert reference.endswith(registry.manifests[f"crucible:{small.tag}"])
        manifest = json.loads(registry.content[reference.partition("@")[2]])
        assert {layer["digest"] for layer in manifest["layers"]} <= registry.content.keys()


def test_training_goes_on_in_the_next_container_after_docker_stop(
    image: str,
    client: docker.DockerClient,
    prefect_server: PrefectServer,
    prefect_api: str,
    store: Store,
    tmp_path: Path,
) -> None:
    """On the pool of `crucible up --pool docker-gpu --gpus 0`, by attempts as the supervising flow launches them.

    Nothing is lost, and the weights are those of a training that nobody stopped.
    """
    with get_client(sync_client=True) as prefect:
        flow = prefect.create_flow_from_name("train")
        prefect.create_deployment(flow_id=flow, name="local", entrypoint="flows/train.py:train")
    bring_up(prefect_server.home, lambda part, status: None, gpus="0", image=image)

    info = build_dataset(DatasetConfig(source="python-stdlib", max_bytes=20_000), store)
    config = TrainConfig.preset("debug", max_iters=1_000_000, checkpoint_interval_seconds=0.2, **KERNELS, **SMALL)
    name = f"contained-{uuid4().hex[:6]}"
    job = Job.create(store, JobSpec(job_id=name, config=config, dataset=info.digest))
    launcher = PrefectLauncher(store.uri, "test", "")
    run = attempt_of(job, launcher, 1)
    committed(job.attempt(1))
    client.containers.get(f"{name}-attempt-1").stop(timeout=60)
    outcome = eventually(lambda: job.attempt(1).read_outcome())
    assert outcome.end_reason is EndReason.INTERRUPTED
    assert outcome.committed_step == outcome.step > 0
    claim = job.attempt(1).read_claim()
    assert claim is not None
    assert claim.environment["image"] == image

    last = outcome.step + 20
    attempt_of(job, launcher, 2, stop_at_step=last)
    paused = eventually(lambda: job.attempt(2).read_outcome())
    assert (paused.end_reason, paused.committed_step) == (EndReason.PAUSED, last)
    start = job.attempt(2).read_start()
    assert start is not None
    assert start.step == outcome.step
    newest = next(iter(Checkpoints(job).list()))
    weights = next(file.sha256 for file in newest.files if file.name == "model.safetensors")
    assert weights == undisturbed(config, fetch_dataset(store, info.digest, tmp_path / "data"), last, tmp_path)

    # What people see of it: a run that was interrupted, no trace of a crash, the log kept and the container gone.
    assert eventually(lambda: final_state_of(run)) == "Interrupted"
    gone = eventually(
        lambda: not client.containers.list(all=True, ignore_removed=True, filters={"label": f"crucible.job={name}"})
    )
    assert gone
    log = (prefect_server.home.root / "logs" / "docker" / f"{name}-attempt-1.log").read_text()
    assert "asked to stop" in log
    assert "Traceback" not in log


@pytest.fixture
def dying(image: str, prefect_server: PrefectServer, prefect_api: str, tmp_path: Path) -> Iterator[Death]:
    """The pool, in whose containers the second node stops at the step of its death."""
    with get_client(sync_client=True) as prefect:
        flow = prefect.create_flow_from_name("train")
        prefect.create_deployment(flow_id=flow, name="local", entrypoint="flows/train.py:train")
    bring_up(prefect_server.home, lambda part, status: None, gpus="0", image=image)
    folder = tmp_path / "death-of-a-node"
    folder.mkdir()
    folder.chmod(0o777)  # the container's user removes the file
    death = Death.planned(folder)
    environment = {"PYTHONPATH": "/standing:/opt/crucible", DEATH: f"/tests/{death.file.name}"}
    mounted = {"volumes": [f"{STANDING}:/standing:ro", f"{folder}:/tests"]}
    register(PoolOptions(image=image, gpus="0", environment=environment, settings=mounted))
    yield death
    register(PoolOptions(image=image, gpus="0", settings={"env": "", "volumes": ""}))


@pytest.mark.slow
def test_two_containers_train_together_and_one_that_is_killed_costs_no_bit(
    client: docker.DockerClient, dying: Death, store: Store
) -> None:
    info = build_dataset(DatasetConfig(source="python-stdlib", max_bytes=20_000), store)
    config = TrainConfig.preset("debug", max_iters=1_000_000, checkpoint_interval_seconds=0.1, **KERNELS, **SMALL)
    two = Resources(nodes="2", gpus=0)
    spec = JobSpec(job_id="", config=config, dataset=info.digest, resources=two)
    killed, undisturbed = (
        Job.create(store, spec.model_copy(update={"job_id": f"{name}-{uuid4().hex[:6]}"}))
        for name in ("killed", "undisturbed")
    )
    attempt_of(killed, PrefectLauncher(store.uri, "test", "", two), 1, nodes=2)
    dying.strike(lambda: client.containers.get(f"{killed.job_id}-attempt-1-node-1").kill())
    outcome = eventually(killed.attempt(1).read_outcome)
    assert outcome.end_reason is EndReason.INTERRUPTED, outcome
    assert 0 < outcome.committed_step <= outcome.step <= dying.step
    assert "node 1" in outcome.message
    last = outcome.committed_step + 50
    for job, number in ((killed, 2), (undisturbed, 1)):
        attempt_of(job, PrefectLauncher(store.uri, "test", "", two), number, nodes=2, stop_at_step=last)
        outcome = eventually(job.attempt(number).read_outcome)
        assert (outcome.end_reason, outcome.committed_step) == (EndReason.PAUSED, last), outcome
        claim = job.attempt(number).read_claim()
        assert claim is not None
        assert claim.nodes == 2
        left = {"all": True, "filters": {"label": f"crucible.job={job.job_id}"}}
        assert eventually(lambda left=left: not client.containers.list(**left))
    require_same_weights(undisturbed, killed, last, dying)


def attempt_of(job: Job, launcher: PrefectLauncher, number: int, **more: Any) -> UUID:
    """Decide on an attempt and launch it; returns its flow run."""
    launch = Launch(number=number, pool="docker-gpu", reason="test", **more)
    job.decide(launch)
    launcher.launch(job, launch)
    return launcher._runs[number].id


def committed(attempt: Attempt) -> None:
    def once() -> bool:
        assert attempt.read_outcome() is None, attempt.read_outcome()
        return (beat := attempt.read_heartbeat()) is not None and beat.committed_step > 0

    eventually(once)


def final_state_of(run: UUID) -> str | None:
    with get_client(sync_client=True) as prefect:
        state = prefect.read_flow_run(run).state
    return state.name if state is not None and state.is_final() else None


def undisturbed(config: TrainConfig, data: Path, last: int, folder: Path) -> str:
    """The sha256 of the weights after `last` steps of the bare trainer, on this machine."""
    (folder / "config.json").write_text(config.model_dump_json())
    arguments = ["--config", str(folder / "config.json"), "--data", str(data)]
    command = [sys.executable, "-m", "crucible.training", *arguments]
    contract = {"CRUCIBLE_CHECKPOINT_DIR": str(folder / "checkpoints"), "CRUCIBLE_STOP_AT_STEP": str(last)}
    done = subprocess.run(command, env={**os.environ, **contract}, capture_output=True, text=True, check=False)
    assert done.returncode == 75, done.stderr
    return file_sha256(folder / "checkpoints" / f"step-{last:08d}" / "model.safetensors")


def eventually(holds: Callable[[], T | None], seconds: float = 300) -> T:
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.1)
    return found


@pytest.mark.slow
def test_training_survives_everything_docker_can_do(engine: OwnEngine | None, image: str, tmp_path: Path) -> None:
    """`docker kill`, out of memory, a killed engine, a killed worker, supervisor and server as well."""
    with docker_stage(tmp_path / "stage", image=image) as stage:
        verdict = Drill(stage, kills=len(stage.faults), seed=2).run()
        assert verdict.failures == []
        rows = {row["name"]: row for row in json.loads(stage.crucible("doctor", "--json"))}
        assert rows["docker-gpu"]["ready"], rows["docker-gpu"]
        assert "on the CPU" in rows["docker-gpu"]["found"]


@pytest.mark.slow
def test_an_unmodified_script_survives_what_docker_can_do(engine: OwnEngine | None, image: str, tmp_path: Path) -> None:
    script = OwnScript(PROJECT / "examples" / "nanogpt_style")
    with docker_stage(tmp_path / "stage", image=image) as stage:
        stage.faults = script.faults(stage.faults)
        verdict = Drill(stage, kills=3, seed=1, workload=script).run()
    print("docker-gpu, seed 1", json.dumps(verdict.as_json(), indent=1))
    assert verdict.failures == []


@pytest.mark.slow
def test_the_whole_dockerfile_builds_with_packages_from_the_index(engine: OwnEngine | None) -> None:
    """What `make test` leaves out: uv, the lock, torch from a wheel on this machine where pip has one."""
    said: list[str] = []
    reference = build(Recipe("cpu", base="host"), said.append)
    output = docker.from_env().containers.run(
        reference, ["python", "-c", "import torch, prefect, s3fs; print(torch.version.cuda)"], remove=True
    )
    assert output.decode().strip() == "None"
