"""The whole pipeline as a user runs it: real server, worker and watchdog, the literal commands, processes killed."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, JobSpec, Limits
from crucible.jobs.status import JobState, status_of
from crucible.local.access import connect, prefect_settings
from crucible.local.state import PROJECT, State
from crucible.rehearsal.drill.drill import Drill, DrillResult
from crucible.rehearsal.drill.plan import chosen
from crucible.rehearsal.drill.stage import Stage, local_stage
from crucible.rehearsal.drill.workload import Trainer
from crucible.script_config import ScriptConfig
from crucible.supervision.heartbeat import supervisor_heartbeats
from crucible.supervision.retry_policy import Placement
from crucible.supervision.supervisor import Supervision
from tasks.launching import PrefectLauncher
from tests.agent.harness import SCRIPTED, newest
from tests.agent.runner import Silent
from tests.agent.scripted import weights_after

pytestmark = pytest.mark.timeout(900)

DATASET = {"source": "python-stdlib", "max_bytes": 300_000}
IN_AN_HOUR = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
SMALL = {"n_layer": 1, "n_embd": 32, "n_head": 2, "threads": 1}


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Stage]:
    """A set-up of its own, brought up by `crucible up`; shared by the tests of this file."""
    with local_stage(tmp_path_factory.mktemp("stage")) as stage:
        yield stage


@pytest.fixture(scope="module", autouse=True)
def drill(stage: Stage) -> Iterator[Future[DrillResult]]:
    """A drill beside the tests until it is asked for: it spends most of its time waiting.

    Its faults strike its own job only: the server and the worker are the other tests' as well.
    """
    harmless = replace(stage, faults=chosen(stage.faults, "kill-in-save,kill-all"))
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(Drill(harmless, kills=2, seed=3, workload=Trainer(seconds_between_faults=2.5)).run)


def api(stage: Stage, method: str, path: str, **arguments: Any) -> Any:
    with connect(stage.home, State.load(stage.home).api_url or "", seconds=60) as client:
        response = client.request(method, path, **arguments)
    response.raise_for_status()
    return response.json()


def start(stage: Stage, job: str, **parameters: Any) -> str:
    """`prefect deployment run train-nanogpt`, as a user types it; returns the flow run's id."""
    values = {"preset": "debug", "dataset": DATASET, "job": job, **parameters}
    said = stage.prefect("deployment", "run", "train-nanogpt", "--params", json.dumps(values))
    return str(UUID(said.split("UUID:")[1].split()[0]))


def eventually(holds: Callable[[], Any], what: str, seconds: float = 400) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := holds()):
        assert time.monotonic() < deadline, f"{what} did not happen within {seconds} s"
        time.sleep(0.1)
    return found


def final_state(stage: Stage, run: str) -> dict[str, Any]:
    def ended() -> dict[str, Any] | None:
        state = api(stage, "GET", f"/flow_runs/{run}")["state"]
        return state if state["type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None

    state: dict[str, Any] = eventually(ended, "a final state")
    return state


def test_a_newcomers_run_completes_and_shows_everything(stage: Stage) -> None:
    run = start(stage, "first", config={"max_iters": 60, **SMALL}, project="demo", owner="ada")
    state = final_state(stage, run)
    assert state["type"] == "COMPLETED", state["message"]

    job = Job(stage.store, "first")
    [attempt] = job.attempts()
    outcome = attempt.read_outcome()
    assert outcome is not None
    assert outcome.end_reason is EndReason.COMPLETED
    assert outcome.committed_step == 60
    evaluation = job.store.read_json("evaluation.json")
    assert 0 < evaluation["val_loss"] < 6

    tags = set(api(stage, "GET", f"/flow_runs/{run}")["tags"])
    marks = {"job:first", "project:demo", "owner:ada"}
    assert {"crucible", "attempts:1", *marks} <= tags
    runs = api(stage, "POST", "/flow_runs/filter", json={"flow_runs": {"tags": {"all_": sorted(marks)}}})
    stages = {tag for run in runs for tag in run["tags"] if tag.startswith("stage:")}
    assert stages == {"stage:pipeline", "stage:preprocess", "stage:train", "stage:evaluate"}
    [child] = api(stage, "POST", "/flow_runs/filter", json={"flow_runs": {"name": {"any_": ["first-attempt-1"]}}})
    assert {"job:first", "stage:train", "pool:local", "attempt:1", "owner:ada"} <= set(child["tags"])
    keys = {a["key"] for a in api(stage, "POST", "/artifacts/latest/filter", json={})}
    assert {"job-first", "progress-first", "evaluation-first"} <= keys

    shown = json.loads(stage.crucible("jobs", "show", "first", "--json"))
    assert shown["state"] == "completed"


OWN_SCRIPT = """
import argparse, os, pathlib, time
steps = argparse.ArgumentParser()
steps.add_argument("--steps", type=int)
steps = steps.parse_args().steps
out = pathlib.Path("out")
out.mkdir()
print("level", os.environ.get("LOG_LEVEL"), "token of", len(os.environ.get("HF_TOKEN", "")))
for step in range(steps + 1):
    if step % 100 == 0:
        print(f"step {step} loss {1 / (step + 1):.4f}", flush=True)
(out / "ckpt.pt").write_bytes(b"weights")
"""


def test_the_commands_of_own_script_md(stage: Stage, tmp_path: Path) -> None:
    text = (PROJECT / "docs" / "own-script.md").read_text()
    blocks = re.findall(r"^```console\n(.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    commands = [line.removeprefix("$ ") for block in blocks for line in block.splitlines()]
    commands = [command for command in commands if "drill" not in command]  # test_script_drill.py has it
    assert len(commands) >= 7
    (tmp_path / "train.py").write_text(OWN_SCRIPT)
    secret = uuid4().hex
    environment = {
        **stage.environment,
        "HF_TOKEN": secret,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
    }
    for command in commands:
        done = subprocess.run(
            ["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
        )
        assert done.returncode == 0, f"{command}\n{done.stdout}\n{done.stderr}"
        if command.startswith("prefect"):
            assert final_state(stage, done.stdout.split("UUID:")[1].split()[0])["type"] == "COMPLETED"
        elif "crucible run --" in command and not {"--dry-run", "--detach"} & set(command.split()):
            assert "step 300 loss 0.0033" in done.stderr
    job = Job(stage.store, "first-run")
    status = eventually(lambda: (found := status_of(job)) and found.state is not JobState.RUNNING and found, "its end")
    assert status.state is JobState.COMPLETED, status.reason
    records = b"".join(stage.store.read(entry.key) for entry in stage.store.list())
    assert f"level debug token of {len(secret)}".encode() in records
    assert secret.encode() not in records
    packages = [entry for entry in stage.store.list("code") if entry.key.endswith(".tar.gz")]
    assert len(packages) == 2, "crucible.yaml came between two of the runs"


def test_starting_a_finished_job_again_trains_nothing_twice(stage: Stage) -> None:
    run = start(stage, "first", config={"max_iters": 60, **SMALL}, project="demo", owner="ada", run_evaluation=False)
    assert final_state(stage, run)["type"] == "COMPLETED"
    assert len(Job(stage.store, "first").attempts()) == 1


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "fields-that-disagree": ({"config": {"n_embd": 30, "n_head": 4}}, ["n_embd", "30", "n_head"]),
    "block-longer-than-the-data": ({"config": {"block_size": 4096}}, ["block_size", "4096"]),
    "missing-file": ({"dataset": {"source": "/nowhere/at/all.txt"}}, ["/nowhere/at/all.txt"]),
    "nowhere-to-go": (
        {"config": {"max_iters": 10**8}, "pool": "auto", "finish_by": IN_AN_HOUR},
        ["no offer fits"],
    ),
}


@pytest.fixture(scope="module", autouse=True)
def bad_runs(stage: Stage) -> dict[str, str]:
    """A flow run of each kind of bad input, by its job's name; all at once, because each takes its ten seconds,
    and beside the drill."""
    small = {"source": "python-stdlib", "max_bytes": 20_000}
    return {job: start(stage, job, **{"dataset": small, **parameters}) for job, (parameters, _) in BAD.items()}


@pytest.mark.parametrize("job", BAD)
def test_bad_input_fails_with_its_reason_before_anything_is_launched(
    stage: Stage, bad_runs: dict[str, str], job: str
) -> None:
    run = bad_runs[job]
    state = final_state(stage, run)
    assert state["type"] == "FAILED"
    for word in BAD[job][1]:
        assert word in state["message"]
    assert job not in Job.ids(stage.store), "its name is taken by a job that never was"
    eventually(
        lambda: run not in {beat.flow_run_id for beat in supervisor_heartbeats(stage.store)}, "its last sign of life"
    )


def test_an_unknown_key_is_refused_before_there_is_a_run(stage: Stage) -> None:
    with pytest.raises(Exception, match="n_layers"):
        start(stage, "unknown-key", config={"n_layers": 3})


ENDLESS = {"max_iters": 1_000_000, "checkpoint_interval_seconds": 2.0, **SMALL}


def test_starting_a_job_that_runs_hands_it_to_the_newest_supervisor_and_stop_ends_it(stage: Stage) -> None:
    """Prefect cancels subflows with their parent; an attempt must not be one, or the superseded run would end it."""
    first = start(stage, "twice", config=ENDLESS)
    job = Job(stage.store, "twice")
    eventually(lambda: (beat := job.attempt(1).read_heartbeat()) and beat.committed_step > 0, "a commit")
    second = start(stage, "twice", config=ENDLESS)
    assert final_state(stage, first)["name"] == "Superseded"
    [child] = api(stage, "POST", "/flow_runs/filter", json={"flow_runs": {"name": {"any_": ["twice-attempt-1"]}}})
    assert child["parent_task_run_id"] is None
    assert child["state"]["type"] == "RUNNING"
    said = stage.crucible("jobs", "stop", "twice")
    assert "attempt 1 is asked to save and stop" in said
    assert final_state(stage, second)["type"] == "CANCELLED"
    outcome = job.attempt(1).read_outcome()
    assert outcome is not None
    assert outcome.end_reason is EndReason.CANCELLED
    assert outcome.committed_step == outcome.step > 0
    assert len(job.attempts()) == 1


def test_a_pause_in_prefect_saves_resume_goes_on_from_there_and_cancel_saves_too(stage: Stage) -> None:
    run = start(stage, "paused", config=ENDLESS)
    job = Job(stage.store, "paused")
    eventually(lambda: (beat := job.attempt(1).read_heartbeat()) and beat.committed_step > 0, "a commit")
    details = {"pause_timeout": datetime.now(UTC).isoformat(), "pause_reschedule": True}
    pause = {"state": {"type": "PAUSED", "name": "Suspended", "state_details": details}, "force": True}
    api(stage, "POST", f"/flow_runs/{run}/set_state", json=pause)  # as the UI does, with a limit that is over
    outcome = eventually(lambda: job.attempt(1).read_outcome(), "the attempt's end", 60)
    assert outcome.end_reason is EndReason.INTERRUPTED
    assert outcome.committed_step == outcome.step > 0
    eventually(lambda: (now := status_of(job)) and now.state is JobState.PAUSED, "the job's pause", 60)
    eventually(lambda: not heartbeat_of(stage, run), "its last beat")
    assert api(stage, "GET", f"/flow_runs/{run}")["state"]["type"] == "PAUSED"
    assert api(stage, "POST", f"/flow_runs/{run}/resume")["status"] == "ACCEPT"
    begun = eventually(lambda: job.attempt(2).read_start(), "the next attempt")
    assert begun.step == outcome.committed_step
    eventually(lambda: (beat := job.attempt(2).read_heartbeat()) and beat.step > begun.step, "a step of its own")
    stage.prefect("flow-run", "cancel", run)
    require_cancelled(stage, run, job)
    assert len(job.attempts()) == 2


CAP = 0.05


def require_within_cap(job: Job, number: int) -> None:
    """What was spent when the attempt was told to stop is within the cap; after that there is one save."""
    attempt = job.attempt(number)
    outcome, launch = attempt.read_outcome(), attempt.read_launch()
    assert outcome is not None
    assert launch is not None
    assert outcome.end_reason is EndReason.BUDGET
    assert outcome.committed_step == outcome.step, "everything that was trained is saved"
    (told,) = [notification for notification in outcome.notifications if notification.source == "budget"]
    saving = (outcome.ended_at - told.at).total_seconds()
    assert job.cost_usd() <= CAP + launch.usd_per_hour / 3600 * saving


def test_a_capped_job_stops_saved_goes_on_when_raised_and_ends_with_the_same_weights(
    stage: Stage, tmp_path: Path
) -> None:
    """At a price at which five cents are soon spent. The workload stands still in step 7 until the gate is there, so
    that nothing but the cap can end it before."""
    gate = tmp_path / "gate"
    script = json.dumps({"steps": 12, "every": 3, "at": {"7": f"wait {gate}"}})
    job = Job.create(
        stage.store, JobSpec(job_id="capped", script=ScriptConfig(command=[sys.executable, str(SCRIPTED), script]))
    )
    job.set_limits(Limits(max_cost_usd=CAP))
    place = Placement("local", usd_per_hour=24.0)

    def supervise() -> JobState:
        with prefect_settings(stage.home):
            launcher = PrefectLauncher(stage.store.uri, "default", "")
            return Supervision(job, launcher, [place], Silent()).run().state

    assert supervise() is JobState.BUDGET_STOP
    require_within_cap(job, 1)
    assert supervise() is JobState.BUDGET_STOP, "not without a higher cap"
    gate.touch()
    stage.crucible("jobs", "limits", "capped", "--max-cost-usd", "1")
    assert supervise() is JobState.COMPLETED
    assert [attempt.number for attempt in job.attempts()] == [1, 2]
    found = newest(job, tmp_path)
    assert found is not None
    assert (found[0].step, found[1]) == (12, weights_after(12))


def test_drill_loses_nothing_and_ends_with_the_same_weights(drill: Future[DrillResult]) -> None:
    result = drill.result()
    print(f"seed {result.seed}", json.dumps(result.as_json(), indent=1))
    assert result.passed, result.failures


@pytest.fixture
def worker_gone(stage: Stage) -> Iterator[Callable[[], None]]:
    """Kills the worker when called; another one is there in the end."""

    def kill() -> None:
        process = State.load(stage.home).services["worker"].find()
        assert process is not None
        process.kill()

    yield kill
    stage.crucible("up")


def test_cancel_in_prefect_saves_first_also_without_a_worker(stage: Stage, worker_gone: Callable[[], None]) -> None:
    run = start(stage, "cancelled", config=ENDLESS)
    job = Job(stage.store, "cancelled")
    eventually(lambda: (beat := job.attempt(1).read_heartbeat()) and beat.committed_step > 0, "a commit")
    worker_gone()
    saved = job.attempt(1).read_heartbeat().committed_step
    eventually(lambda: job.attempt(1).read_heartbeat().committed_step > saved, "a commit without the worker")
    stage.prefect("flow-run", "cancel", run)
    require_cancelled(stage, run, job)
    assert len(job.attempts()) == 1


def require_cancelled(stage: Stage, run: str, job: Job) -> None:
    """The newest attempt saves, the run is over, and so is the supervisor's heartbeat."""
    outcome = eventually(lambda: job.attempts()[-1].read_outcome(), "the attempt's end")
    assert outcome.end_reason is EndReason.CANCELLED
    assert outcome.committed_step == outcome.step > 0
    assert final_state(stage, run)["type"] == "CANCELLED"
    eventually(lambda: not heartbeat_of(stage, run), "its last sign of life")


def heartbeat_of(stage: Stage, run: str) -> bool:
    return run in {beat.flow_run_id for beat in supervisor_heartbeats(stage.store)}


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("s3", [False, True], ids=["on disk", "on S3"])
def test_drill_of_twelve(tmp_path: Path, s3: bool) -> None:
    with local_stage(tmp_path, s3=s3) as stage:
        result = Drill(stage, kills=12, seed=7).run()
    print("seed 7", json.dumps(result.as_json(), indent=1))
    assert result.passed, result.failures
