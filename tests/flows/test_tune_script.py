"""A search over a script that knows nothing of Crucible, on a real server: rungs, the objective, the best command."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from prefect.client.orchestration import get_client

import crucible
from crucible.billing.costs import attempt_costs
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason
from crucible.store import Store
from crucible.sweeps import Sweep
from flows.tune_script import tune_script
from tasks.ending import Ended

TRAIN = """
import argparse, json, os, pathlib, time
parser = argparse.ArgumentParser()
parser.add_argument("--lr", type=float)
parser.add_argument("--resume", action="store_true")
options = parser.parse_args()
saved = pathlib.Path("saved.json")
assert pathlib.Path("data.txt").read_text() == "prepared"
step = json.loads(saved.read_text())["step"] if options.resume else 0
while step < 9:
    step += 1
    print(f"step {step} accuracy {options.lr * step * int(os.environ['FACTOR']):.3f}", flush=True)
    if step % 3 == 0:
        saved.write_text(json.dumps({"step": step}))
        time.sleep(0.7)
"""
CONFIG = r"""
command: python train.py --lr={lr}
env: {FACTOR: '{factor}'}
checkpoint: {path: saved.json, step_from: 'step (\d+)'}
resume: --resume
metrics: {format: pattern, pattern: 'step (?P<step>\d+) accuracy (?P<accuracy>[\d.]+)'}
total_steps: 9
project: paper
preprocess: {command: python prepare.py, output: data.txt}
evaluate: {command: python evaluate.py}
tune:
  space: {lr: [0.1, 0.2, 0.4], factor: [1]}
  sampler: grid
  metric: accuracy
  goal: max
  min_steps: 3
  reduction_factor: 3
  max_trials: 99
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path / "home"))
    (tmp_path / "code").mkdir()
    (tmp_path / "code" / "train.py").write_text(TRAIN)
    (tmp_path / "code" / "prepare.py").write_text("open('data.txt', 'w').write('prepared')")
    (tmp_path / "code" / "evaluate.py").write_text("print('evaluated', open('saved.json').read())")
    (tmp_path / "code" / "crucible.yaml").write_text(CONFIG)
    return tmp_path / "code"


def test_a_script_is_searched_by_its_own_metric_and_the_rungs_of_its_own_saves(
    prefect_api: str, store: Store, folder: Path
) -> None:
    state = tune_script(code=str(folder), sweep="own", store=store.uri, parallelism=3, return_state=True)
    assert state.type.value == "COMPLETED", state.message

    table = crucible.sweep("own", store.uri).trials()
    assert list(table["lr"]) == [0.4, 0.2, 0.1]
    assert list(table["accuracy"]) == pytest.approx([3.6, 0.6, 0.3])
    assert list(table["state"]) == ["complete", "stopped early", "stopped early"]
    sweep = Sweep(store, "own")
    best = sweep.best()
    assert best is not None
    assert sweep.read_kind().describe(best.values)["command"] == "python train.py --lr=0.4"
    job = sweep.job(best.number)
    assert job.read_spec().project == "paper"
    ends = [outcome.end_reason for attempt in job.attempts() if (outcome := attempt.read_outcome())]
    assert ends == [EndReason.PAUSED, EndReason.COMPLETED]
    assert len(Job(store, "own-preprocess").attempts()) == 1, "once for all trials"
    evaluated = Job(store, f"{best.job_id}-evaluate-local")
    assert b'evaluated {"step": 9}' in evaluated.attempt(1).output.read()
    assert {cost.stage for cost in attempt_costs(store, {}) if cost.sweep == "own"} == {
        "preprocess",
        "train",
        "evaluate",
    }
    assert b"--resume" not in job.attempt(1).output.read()
    assert job.attempt(2).read_start().step == 3  # type: ignore[union-attr]
    with get_client(sync_client=True) as client:
        page = next(str(a.data) for a in client.read_artifacts() if a.key == "sweep-own")
    assert "accuracy 3.6000 at step 9" in page
    assert "--lr=0.4" in page

    (folder / "train.py").write_text("raise SystemExit('changed since')")
    again = tune_script(sweep="own", store=store.uri, max_trials=3, return_state=True)
    assert again.type.value == "COMPLETED", again.message
    assert [len(sweep.job(number).attempts()) for number in table["trial"]] == list(table["attempts"])
    with pytest.raises(Ended, match="'own' already exists with another"):
        tune_script(code=str(folder), sweep="own", store=store.uri)


def test_the_record_of_a_sweep_says_what_was_searched(store: Store, folder: Path) -> None:
    """Read by `sweeps show` of a version that has no scripts as well: its fields have defaults."""
    spec = json.loads('{"sweep_id": "old", "space": {}, "sampler": "grid", "schedule": "asha", "ladder": [1]}')
    store.write_json("sweeps/old/sweep.json", spec)
    assert Sweep(store, "old").read_spec().objective.metric == "val_loss"
