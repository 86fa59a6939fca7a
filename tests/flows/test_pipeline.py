"""The whole pipeline as a user runs it: real server, worker and watchdog, the literal commands, processes killed."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from itertools import pairwise
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit
from uuid import uuid4

import psutil
import pytest
from typer.testing import CliRunner

from crucible.adapter.tensorboard import EventFiles
from crucible.checkpoints.commits import Checkpoints
from crucible.cli.main import build_app
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, JobSpec, Limits
from crucible.jobs.status import JobState, status_of
from crucible.local.access import prefect_settings
from crucible.local.state import PROJECT, State
from crucible.rehearsal.drill.drill import Drill, DrillResult
from crucible.rehearsal.drill.plan import chosen
from crucible.rehearsal.drill.stage import Stage, local_stage
from crucible.rehearsal.drill.workload import Trainer
from crucible.script_config import ScriptConfig
from crucible.supervision.heartbeat import supervisor_heartbeats
from crucible.supervision.retry_policy import Placement
from crucible.supervision.supervisor import Supervision
from crucible.trackers.records import read_records
from flows.train_nanogpt import train_nanogpt
from tasks.ending import Ended
from tasks.launching import PrefectLauncher
from tests.agent.harness import SCRIPTED, newest
from tests.agent.runner import Silent
from tests.agent.scripted import weights_after
from tests.flows.staged import api, cancel, eventually, final_state, heartbeat_of, require_cancelled, start_endless

pytestmark = pytest.mark.timeout(900)

IN_AN_HOUR = (datetime.now(UTC) + timedelta(hours=1)).isoformat()


@pytest.fixture(scope="module")
def stage(tmp_path_factory: pytest.TempPathFactory, migrated_database: Path) -> Iterator[Stage]:
    """A set-up of its own, brought up by `crucible up`, in a folder whose name breaks naive programs."""
    folder = tmp_path_factory.mktemp("stage") / "Zoë's 100% home"
    (folder / "prefect").mkdir(parents=True)
    shutil.copy(migrated_database, folder / "prefect" / "prefect.db")
    with local_stage(folder) as stage:
        yield stage
    # What a test that failed left running without a worker, `crucible down` does not know.
    for process in psutil.process_iter(["environ"]):
        if (process.info["environ"] or {}).get("CRUCIBLE_HOME") == str(folder):
            process.kill()


@pytest.fixture(scope="module", autouse=True)
def drill(stage: Stage) -> Iterator[Future[DrillResult]]:
    """A drill beside the tests until it is asked for: it spends most of its time waiting.

    Its faults strike its own job only: the server and the worker are the other tests' as well.
    """
    harmless = replace(stage, faults=chosen(stage.faults, "kill-in-save,kill-all"))
    with ThreadPoolExecutor(1) as executor:
        yield executor.submit(Drill(harmless, kills=2, seed=3, workload=Trainer(seconds_between_faults=2.5)).run)


@pytest.fixture(scope="module")
def quickstart(stage: Stage) -> dict[str, str]:
    """What `crucible quickstart` prints at its end, by row."""
    printed = stage.crucible("quickstart", "--preset", "debug")
    rows = re.findall(r"^(validation loss|cost|model|Prefect UI|report) +(.*)$", printed, re.MULTILINE)
    return dict(rows)


def test_quickstart_trains_a_model_through_the_deployment_and_shows_everything(
    stage: Stage, quickstart: dict[str, str]
) -> None:
    assert float(quickstart["validation loss"].split()[0]) < 4.0, "an untrained model has 5.0"
    assert quickstart["cost"].startswith("$0.00")
    model = Path(quickstart["model"])
    assert {"README.md", "model.safetensors", "config.json"} <= {path.name for path in model.iterdir()}
    page, _, run = quickstart["Prefect UI"].rpartition("/")
    assert page == (State.load(stage.home).api_url or "").removesuffix("/api") + "/v2/runs/flow-run"
    seen = api(stage, "GET", f"/flow_runs/{run}")
    assert seen["state"]["type"] == "COMPLETED"

    name = quickstart["report"].split()[-1]
    assert json.loads(stage.crucible("jobs", "show", name, "--json"))["state"] == "completed"
    job = Job(stage.store, name)
    [attempt] = job.attempts()
    outcome = attempt.read_outcome()
    assert outcome is not None
    assert outcome.end_reason is EndReason.COMPLETED
    assert outcome.committed_step == 60
    assert 0 < job.store.read_json("evaluation.json")["val_loss"] < 4
    assert {"crucible", "attempts:1", f"job:{name}"} <= set(seen["tags"])
    runs = api(stage, "POST", "/flow_runs/filter", json={"flow_runs": {"tags": {"all_": [f"job:{name}"]}}})
    stages = {tag for run in runs for tag in run["tags"] if tag.startswith("stage:")}
    assert stages == {"stage:pipeline", "stage:preprocess", "stage:train", "stage:evaluate"}
    keys = {a["key"] for a in api(stage, "POST", "/artifacts/latest/filter", json={})}
    assert {f"job-{name}", f"progress-{name}", f"evaluation-{name}"} <= keys


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
    _run_inline_commands(text, job, tmp_path, environment)


NOT_RUN_HERE = {
    "crucible up": "the stage was brought up with it",
    "crucible run": "a whole job more; the same command with --dry-run is run",
    "crucible tune": "tests/flows/test_tune_script.py runs a sweep",
    "crucible drill --script": "takes minutes; the drill of the trainer runs here, and of a script in `make test-slow`",
}
"""Commands in the sentences of docs/own-script.md, and why the test does not run them."""


def _run_inline_commands(text: str, job: Job, folder: Path, environment: dict[str, str]) -> None:
    """Those between backquotes, in this process: `jobs fork` without the start of its run."""
    blocks = re.findall(r"^\$ (.*)$", text, flags=re.MULTILINE)
    found = [line for line in dict.fromkeys(re.findall(r"`(crucible [^`]+)`", text)) if line not in blocks]
    assert set(found) > NOT_RUN_HERE.keys()
    [settings] = re.findall(r"^```yaml\n(command: python train.py.*?)^```", text, flags=re.MULTILINE | re.DOTALL)
    (folder / "crucible.yaml").write_text(settings)
    (folder / "data").mkdir()
    (folder / "data" / "text.txt").write_text("read by the script")
    (folder / "printed.txt").write_text("step 100 loss 0.5\nstep 100 saved\n")
    places = {
        "JOB": job.job_id,
        "FILE": "printed.txt",
        "DIR": "fetched",
        "STEP": str(Checkpoints(job).list()[0].shown_step),
    }
    commands = [re.sub("|".join(rf"\b{name}\b" for name in places), lambda m: places[m[0]], line) for line in found]
    options = "--config crucible.yaml --data data --include printed.txt --gpus 1 --env LOG_LEVEL --secret HF_TOKEN"
    commands.append(f"crucible run --dry-run --pool local {options}")
    printed = {}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("crucible.local.forking._start", lambda *_: "no run")
        for name, value in {**environment, "LOG_LEVEL": "debug"}.items():
            patch.setenv(name, value)
        for command in commands:
            if command in NOT_RUN_HERE:
                continue
            done = CliRunner().invoke(build_app(), shlex.split(command)[1:])
            assert done.exit_code == 0, f"{command}\n{done.output}\n{done.exception!r}"
            printed[command] = done.output
    assert "1 line match step_from, the last at step 100" in printed["crucible run --sample-log printed.txt"]
    assert list((folder / "fetched").rglob("ckpt.pt")), "what the script wrote"
    [name] = [name for name in Job.ids(job.root) if name.startswith(f"{job.job_id}-from-")]
    fork = Job(job.root, name).read_spec()
    assert fork.script is not None
    assert fork.script.command[-2:] == ["--lr", "0.01"]


def test_starting_a_finished_job_again_trains_nothing_twice(stage: Stage, quickstart: dict[str, str]) -> None:
    job = quickstart["report"].split()[-1]
    with prefect_settings(stage.home):
        again = train_nanogpt(preset="debug", job=job, store=stage.store.uri, run_evaluation=False, return_state=True)
    assert again.type.value == "COMPLETED"
    assert len(Job(stage.store, job).attempts()) == 1


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "fields-that-disagree": ({"config": {"n_embd": 30, "n_head": 4}}, ["n_embd", "30", "n_head"]),
    "block-longer-than-the-data": ({"config": {"block_size": 4096}}, ["block_size", "4096"]),
    "missing-file": ({"dataset": {"source": "/nowhere/at/all.txt"}}, ["/nowhere/at/all.txt"]),
    "nowhere-to-go": (
        {"config": {"max_iters": 10**8}, "pool": "auto", "finish_by": IN_AN_HOUR},
        ["no offer fits"],
    ),
    "no-such-tracker": ({"tracker": "tensorboard,nowhere"}, ["no Tracker block", "nowhere", "mlflow"]),
}


@pytest.mark.parametrize("job", BAD)
def test_bad_input_fails_with_its_reason_before_anything_is_launched(stage: Stage, job: str) -> None:
    parameters, words = BAD[job]
    request = {"preset": "debug", "dataset": {"source": "python-stdlib", "max_bytes": 20_000}, **parameters}
    with prefect_settings(stage.home), pytest.raises(Ended) as ended:
        train_nanogpt(**request, job=job, store=stage.store.uri)
    assert ended.value.state.is_failed()
    for word in words:
        assert word in str(ended.value)
    assert job not in Job.ids(stage.store), "its name is taken by a job that never was"
    assert job not in {beat.subject for beat in supervisor_heartbeats(stage.store)}


def test_a_pause_in_prefect_saves_resume_goes_on_from_there_and_cancel_saves_too(stage: Stage) -> None:
    run = start_endless(stage, "paused", tracker="tensorboard")
    job = Job(stage.store, "paused")
    eventually(lambda: (beat := job.attempt(1).read_heartbeat()) and beat.committed_step > 0, "a commit")
    limit = (datetime.now(UTC) + timedelta(minutes=5)).isoformat()
    details = {"pause_timeout": limit, "pause_reschedule": True}
    pause = {"state": {"type": "PAUSED", "name": "Suspended", "state_details": details}, "force": True}
    api(stage, "POST", f"/flow_runs/{run}/set_state", json=pause)  # as the UI does
    outcome = eventually(lambda: job.attempt(1).read_outcome(), "the attempt's end")
    assert outcome.end_reason is EndReason.INTERRUPTED
    assert outcome.committed_step == outcome.step > 0
    eventually(lambda: (now := status_of(job)) and now.state is JobState.PAUSED, "the job's pause")
    eventually(lambda: not heartbeat_of(stage, run), "its last beat")
    assert api(stage, "GET", f"/flow_runs/{run}")["state"]["type"] == "PAUSED"
    assert api(stage, "POST", f"/flow_runs/{run}/resume")["status"] == "ACCEPT"
    begun = eventually(lambda: job.attempt(2).read_start(), "the next attempt")
    assert begun.step == outcome.committed_step
    eventually(lambda: (beat := job.attempt(2).read_heartbeat()) and beat.step > begun.step, "a step of its own")
    eventually(lambda: any(record.step > begun.step for record in read_records(job)), "points in the tracker")
    cancel(stage, run)
    require_cancelled(stage, run, job)
    assert len(job.attempts()) == 2
    [tracker] = read_records(job)
    events = EventFiles(Path(urlsplit(tracker.url).path), "*tfevents*").read_new()
    steps = [step for step, tag, _ in events if tag == "attempt"]
    assert all(before < after for before, after in pairwise(steps)), "two attempts are one curve"


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


def test_a_second_start_takes_the_job_over_and_cancel_saves_first_also_without_a_worker(stage: Stage) -> None:
    """Prefect cancels subflows with their parent; an attempt must not be one, or the superseded run would end it.

    The last test here that needs the worker: it kills it.
    """
    first = start_endless(stage, "twice")
    job = Job(stage.store, "twice")
    eventually(lambda: (beat := job.attempt(1).read_heartbeat()) and beat.committed_step > 0, "a commit")
    second = start_endless(stage, "twice")
    assert final_state(stage, first)["name"] == "Superseded"
    [child] = api(stage, "POST", "/flow_runs/filter", json={"flow_runs": {"name": {"any_": ["twice-attempt-1"]}}})
    assert child["parent_task_run_id"] is None
    assert child["state"]["type"] == "RUNNING"
    marks = {"job:twice", "project:demo", "owner:ada"}
    assert {"stage:train", "pool:local", "attempt:1", *marks} <= set(child["tags"])
    assert marks <= set(api(stage, "GET", f"/flow_runs/{second}")["tags"])

    worker = State.load(stage.home).services["worker"].find()
    assert worker is not None
    worker.kill()
    saved = job.attempt(1).read_heartbeat().committed_step
    eventually(lambda: job.attempt(1).read_heartbeat().committed_step > saved, "a commit without the worker")
    cancel(stage, second)
    require_cancelled(stage, second, job)
    assert len(job.attempts()) == 1


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("s3", [False, True], ids=["on disk", "on S3"])
def test_drill_of_twelve(tmp_path: Path, s3: bool) -> None:
    with local_stage(tmp_path, s3=s3) as stage:
        result = Drill(stage, kills=12, seed=7).run()
    print("seed 7", json.dumps(result.as_json(), indent=1))
    assert result.passed, result.failures
