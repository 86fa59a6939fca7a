"""SkyPilot itself: the whole pool on SkyPilot's Slurm cloud, over ssh to a real Slurm on this machine.

    SKYPILOT_PYTHON=$CRUCIBLE_HOME/skypilot/bin/python pytest -m slow -s tests/pools/skypilot/test_on_slurm.py

Takes 10 to 20 minutes on two cores: a cluster takes minutes to come up, and there are five.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from crucible.errors import ServiceError
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import EndReason
from crucible.jobs.status import JobState, status_of
from crucible.local.state import PROJECT
from crucible.pools.skypilot.environment import folder
from crucible.rehearsal.drill.stage import Stage, local_stage
from crucible.rehearsal.worker_process import WorkerProcess
from tests import waiting
from tests.pools.skypilot.slurm_cloud import INFRA, SlurmCloud, slurm_cloud

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
PYTHON = Path(os.environ.get("SKYPILOT_PYTHON") or folder() / "bin" / "python")
LONG_SECONDS = 1500.0
LOOK_SECONDS = 3.0
MODEL = {"n_layer": 1, "n_head": 1, "n_embd": 32, "block_size": 32, "batch_size": 4}
SMALL = {**MODEL, "eval_iters": 2, "log_interval": 5, "warmup_iters": 5}


@dataclass
class Rehearsal:
    stage: Stage
    cloud: SlurmCloud

    def start(self, job: str, steps: int, nodes: int = 1) -> Job:
        config = {
            **SMALL,
            "max_iters": steps,
            "lr_decay_iters": steps,
            "eval_interval": steps,
            "checkpoint_interval_seconds": 5,
        }
        parameters = {
            "pool": "skypilot",
            "job": job,
            "config": config,
            "resources": {"instance": INFRA, "gpus": 0, "nodes": nodes},
            "run_evaluation": False,
            "store": self.stage.store.uri,
        }
        given = (part for name, value in parameters.items() for part in ("--param", f"{name}={json.dumps(value)}"))
        self.stage.prefect("deployment", "run", "train-nanogpt", *given)
        until(lambda: self.stage.store.exists(f"jobs/{job}/job.json"))
        return Job.open(self.stage.store, job)

    def sky(self, *arguments: str) -> str:
        command = [str(PYTHON.with_name("sky")), *arguments]
        environment = {**os.environ, **self.cloud.environment}
        done = subprocess.run(
            command, env=environment, capture_output=True, text=True, check=False, stdin=subprocess.DEVNULL
        )
        assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
        return done.stdout


@pytest.fixture(scope="module")
def rehearsal() -> Iterator[Rehearsal]:
    if not PYTHON.is_file():
        pytest.skip(f"NOT TESTED, there is no SkyPilot at {PYTHON}: crucible sky setup")
    root = Path(tempfile.mkdtemp(prefix="crucible-sky-"))  # pytest's own folders are closed to the cluster's user
    root.chmod(0o755)
    try:
        with slurm_cloud(root / "cloud") as cloud, local_stage(root / "home", s3=True) as stage:
            (root / "home" / "offers.csv").write_text(f"pool,instance,usd_per_hour\nskypilot,{INFRA},0\n")
            made = Rehearsal(stage, cloud)
            made.sky("check", "slurm")
            # Of the stage's AWS, the store: its metadata would make the cluster's nodes machines of EC2.
            passed = {
                name: value
                for name, value in stage.environment.items()
                if name.startswith("AWS_") and name != "AWS_EC2_METADATA_SERVICE_ENDPOINT"
            }
            passed |= {"CRUCIBLE_STORE": stage.environment["CRUCIBLE_STORE"], "OMP_NUM_THREADS": "1"}
            settings = {
                "sky_python": PYTHON,
                "setup": ":",
                "venv": sys.prefix,
                "poll_seconds": 5,
                "workdir": PROJECT,
                "grace_seconds": 120,
            }
            stage.crucible(
                *("sky", "pool", "--infra", INFRA),
                *(part for name, value in passed.items() for part in ("--env", f"{name}={value}")),
                *(part for name, value in settings.items() for part in ("--set", f"{name}={value}")),
            )
            environment = {**stage.environment, **cloud.environment}
            worker = WorkerProcess("skypilot", "skypilot", environment, root / "worker.log")
            worker.start()
            try:
                yield made
            finally:
                worker.stop()
                made.sky("down", "--all", "--yes")
                made.sky("api", "stop")
    except ServiceError as error:
        pytest.skip(f"NOT TESTED, {error}")
    finally:
        shutil.rmtree(root, ignore_errors=True)


def until(holds: Callable[[], object]) -> None:
    """Look seldom: the store that the attempts write to is served by this very process."""

    def look() -> object:
        time.sleep(LOOK_SECONDS)
        return holds()

    waiting.until(look, LONG_SECONDS)


def trains(attempt: Attempt, beyond: int = 0) -> bool:
    """Whether it has committed something newer."""
    heartbeat = attempt.read_heartbeat()
    return heartbeat is not None and (heartbeat.committed_step or 0) > beyond


def report(what: str, attempt: Attempt) -> None:
    launch, claim, outcome = attempt.read_launch(), attempt.read_claim(), attempt.read_outcome()
    assert launch is not None
    if claim is not None:
        print(f"{what}: {(claim.claimed_at - launch.decided_at).total_seconds():.0f} s from launch to claim")
    if outcome is not None:
        print(f"{what}: {outcome.label} at step {outcome.committed_step} after {outcome.seconds:.0f} s")


def test_an_attempt_runs_from_submission_to_completed(rehearsal: Rehearsal) -> None:
    job = rehearsal.start("one", 200)
    until(lambda: (status := status_of(job)) is not None and status.state is not JobState.RUNNING)
    report("one attempt", job.attempt(1))
    outcome = job.attempt(1).read_outcome()
    assert outcome is not None
    assert (outcome.end_reason, outcome.committed_step) == (EndReason.COMPLETED, 200)
    until(lambda: "crucible-" not in rehearsal.sky("status"))


def test_two_machines_of_a_cluster_train_together(rehearsal: Rehearsal) -> None:
    job = rehearsal.start("both", 200, nodes=2)
    until(lambda: (status := status_of(job)) is not None and status.state is not JobState.RUNNING)
    report("two machines", job.attempt(1))
    claim, outcome = job.attempt(1).read_claim(), job.attempt(1).read_outcome()
    assert claim is not None
    assert outcome is not None
    assert (claim.nodes, outcome.end_reason, outcome.committed_step) == (2, EndReason.COMPLETED, 200)


def test_one_that_is_stopped_goes_on_and_so_does_one_whose_cluster_is_taken_down(rehearsal: Rehearsal) -> None:
    job = rehearsal.start("two", 20_000)
    until(lambda: trains(job.attempt(1)))
    rehearsal.stage.crucible("jobs", "stop", "two")
    until(lambda: job.attempt(1).read_outcome() is not None)
    report("stopped", job.attempt(1))
    stopped = job.attempt(1).read_outcome()
    assert stopped is not None
    assert stopped.end_reason is EndReason.CANCELLED
    rehearsal.stage.crucible("jobs", "continue", "two")
    until(lambda: trains(job.attempt(2), stopped.committed_step))
    report("resumed", job.attempt(2))
    environment = {**os.environ, **rehearsal.cloud.cluster.environment}
    subprocess.run(["scancel", "--state=RUNNING"], env=environment, check=True)  # the provider takes its machine
    until(lambda: job.attempt(2).read_outcome() is not None)
    report("taken down", job.attempt(2))
    gone = job.attempt(2).read_outcome()
    assert gone is not None
    assert gone.end_reason in (EndReason.INTERRUPTED, EndReason.LOST)
    until(lambda: job.attempt(3).read_claim() is not None)
    report("after that", job.attempt(3))
    until(lambda: trains(job.attempt(3), gone.committed_step))
    rehearsal.stage.crucible("jobs", "stop", "two")
    until(lambda: job.attempt(3).read_outcome() is not None)
    report("stopped again", job.attempt(3))
