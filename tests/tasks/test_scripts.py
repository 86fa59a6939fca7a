"""A folder of code from a person's machine through the store to an attempt, and the evaluation after it."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from crucible.agent.attempt import run_attempt
from crucible.agent.nodes import Nodes
from crucible.agent.plan import Scratch
from crucible.config import TrainConfig
from crucible.errors import ConfigError
from crucible.jobs.job import Job
from crucible.jobs.records import CodePackage, EndReason, JobSpec, Launch, Outcome
from crucible.resources import Resources
from crucible.run_config import RunConfig
from crucible.script_config import ScriptConfig
from crucible.store import Store
from tasks.scripts import _launched, prepare_script, read_config
from tasks.scripts import resolve as resolve_config
from tasks.training import save_policy
from tests.agent.harness import Recorder, plan
from tests.faults.small_jobs import launched

TRAIN = """
import os, pathlib, helper
out = pathlib.Path("out")
out.mkdir(exist_ok=True)
for step in range(1, 4):
    print(f"step {step} saved, level {os.environ['LEVEL']}", flush=True)
    (out / "ckpt.txt").write_text(f"{helper.word} {step} {pathlib.Path('data/corpus.bin').read_text()}")
pathlib.Path("table.csv").write_text("1,2")
"""
EVALUATE = """
import os, pathlib
print(pathlib.Path("out/ckpt.txt").read_text(), pathlib.Path("table.csv").read_text(), os.environ["CRUCIBLE_EVALUATE"])
"""
CONFIG = """
command: python train.py
checkpoint: {path: out/ckpt.txt, step_from: 'step (\\d+) saved'}
output: table.csv
data: data
env: {LEVEL: 3, PYTHONPATH: lib}
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path / "home"))
    project = tmp_path / "project"
    for name, text in {
        "train.py": TRAIN,
        "evaluate.py": EVALUATE,
        "lib/helper.py": "word = 'hello'",
        "data/corpus.bin": "corpus",
        ".gitignore": "*.bin",
        "crucible.yaml": CONFIG,
    }.items():
        (project / name).parent.mkdir(parents=True, exist_ok=True)
        (project / name).write_text(text)
    return project


def resolve(store: Store, code: str, given: dict[str, Any]) -> tuple[ScriptConfig, CodePackage | None]:
    return resolve_config(store, code, {}, read_config(code, given))


def attempt(job: Job, tmp_path: Path) -> Outcome:
    spec = job.read_spec()
    assert spec.script is not None
    script = spec.script
    prepared = replace(plan(tmp_path, ["unused"]), prepare=lambda scratch: prepare_script(job, spec, script, scratch))
    return run_attempt(launched(job, 1), prepared, Recorder())


def printed(job: Job) -> str:
    return job.attempt(1).output.read().decode()


def test_a_folder_runs_in_a_fresh_copy_and_is_evaluated_in_another(folder: Path, store: Store, tmp_path: Path) -> None:
    script, code = resolve(store, str(folder), {"env": {"LEVEL": "4", "PYTHONPATH": "lib"}})
    job = Job.create(store, JobSpec(job_id="mine", script=script, code=code))
    (folder / "train.py").write_text("raise SystemExit('changed since it was packed')")

    outcome = attempt(job, tmp_path)
    assert outcome.end_reason is EndReason.COMPLETED, printed(job)
    assert "step 3 saved, level 4" in printed(job)
    assert not (folder / "out").exists(), "the person's own folder stays as it is"

    looks = script.model_copy(update={"command": ["python", "evaluate.py"], "checkpoint": None, "output": []})
    made: dict[str, Any] = {"script": looks, "code": code, "evaluates": "mine"}
    evaluation = Job.create(store, JobSpec(job_id="mine-evaluate", **made))
    outcome = attempt(evaluation, tmp_path)
    assert outcome.end_reason is EndReason.COMPLETED, printed(evaluation)
    assert "hello 3 corpus 1,2 /" in printed(evaluation)
    assert not list((tmp_path / "scratch").rglob("train.py")), "copies go with their attempts"


@pytest.mark.parametrize("sweep", ["", "mine"], ids=["a job", "a trial"])
def test_a_trial_is_done_with_what_it_reports_and_a_job_with_what_it_saves(
    store: Store, tmp_path: Path, sweep: str
) -> None:
    report = (
        "import json, os; open(os.environ['CRUCIBLE_METRICS_FILE'], 'a').write('{\"step\": 1, \"accuracy\": 2}\\n')"
    )
    script = ScriptConfig(command=["python", "-c", report])
    job = Job.create(store, JobSpec(job_id="reports", script=script, sweep=sweep))
    assert attempt(job, tmp_path).end_reason is (EndReason.COMPLETED if sweep else EndReason.FAILED), printed(job)


def test_the_image_of_a_folder_brings_its_own_programs(
    folder: Path, store: Store, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    programs = tmp_path / "bin"
    programs.mkdir()
    (programs / "python").write_text("#!/bin/sh\necho the python of the image: $@\nmkdir out\necho x > out/ckpt.txt\n")
    (programs / "python").chmod(0o755)
    monkeypatch.setenv("CRUCIBLE_SCRIPT_PATH", f"{programs}:{os.environ['PATH']}")
    (folder / "requirements.txt").write_text("no-such-package-anywhere\n")
    script, code = resolve(store, str(folder), {"output": "out"})
    job = Job.create(store, JobSpec(job_id="mine", script=script, code=code))
    assert attempt(job, tmp_path).end_reason is EndReason.COMPLETED, printed(job)
    assert "the python of the image: train.py" in printed(job), "and what is in it is not installed again"


def test_variables_of_the_resources_reach_the_script_below_its_own(store: Store, tmp_path: Path) -> None:
    script = ScriptConfig(command=["true"], env={"LEVEL": "own"})
    resources = Resources(environment={"LEVEL": "machine", "NCCL_DEBUG": "INFO"})
    assert resources.job_variables("local") == {}
    job = Job.create(store, JobSpec(job_id="mine", script=script, resources=resources))
    environment = prepare_script(job, job.read_spec(), script, Scratch(tmp_path)).environment
    assert (environment["LEVEL"], environment["NCCL_DEBUG"]) == ("own", "INFO")


def test_a_job_keeps_as_many_checkpoints_as_it_is_told() -> None:
    launch = Launch(number=1, pool="local", reason="test")
    script = ScriptConfig(command=["true"], keep_checkpoints=7)
    config = TrainConfig.preset("debug", keep_checkpoints=5)
    for kind, kept in (({"script": script}, 7), ({"config": config}, 5)):
        assert save_policy(JobSpec(job_id="mine", **kind), launch).keep_last == kept


def test_what_cannot_start_is_refused_before_there_is_a_job(folder: Path, store: Store) -> None:
    with pytest.raises(ConfigError, match="no package ffff"):
        resolve(store, "f" * 64, {"command": "python train.py"})
    with pytest.raises(ConfigError, match="command: there is none"):
        resolve(store, "", {})
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        resolve(store, "/nowhere", {"command": "true"})
    (folder / "Dockerfile").write_text("FROM scratch\n")
    with pytest.raises(ConfigError, match="has a Dockerfile: start it with crucible run"):
        resolve(store, str(folder), {"pool": "docker-gpu"})
    assert resolve(store, str(folder), {})[1] is not None


@pytest.mark.parametrize(
    ("command", "torchrun", "launched"),
    [
        (["python", "train.py"], None, True),
        (["bash", "train.sh"], None, True),
        (["python", "train.py"], False, False),
        (["torchrun", "train.py"], None, False),
        (["python", "-m", "torch.distributed.run", "train.py"], None, False),
        (["accelerate", "launch", "train.py"], None, False),
    ],
)
def test_torchrun_starts_what_does_not_start_its_processes_itself(
    command: list[str], torchrun: bool | None, launched: bool
) -> None:
    script = ScriptConfig(command=command, torchrun=torchrun)
    assert _launched(script, Nodes(processes=2)).command[-len(command) :] == command
    assert ("crucible.agent.torchrun" in _launched(script, Nodes(processes=2)).command) is launched
    assert _launched(script, Nodes()).command == command


def test_a_script_that_starts_its_processes_is_refused_on_several_nodes() -> None:
    config = RunConfig.parse({"command": "torchrun train.py", "resources": {"nodes": 2}, "pool": "slurm"})
    with pytest.raises(ConfigError, match=r"torchrun starts the processes itself .* write the plain command"):
        config.script()
