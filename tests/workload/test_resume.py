"""A script that imports `crucible.workload` is resumed exactly, by hand as well as by an agent."""

from __future__ import annotations

import base64
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

from crucible.contract import Control, Variable, file_sha256, finished_folders
from crucible.errors import CheckpointError, ConfigError
from crucible.workload import resume_or_start
from crucible.workload.folders import CHECKSUMS, fault
from tests.workload.training import STEPS, Training, train

ROOT = Path(__file__).parents[2]
LAST = f"step-{STEPS:08d}"


@pytest.fixture(autouse=True)
def _by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in Variable:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def whole(_one_thread: None, tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The sha256 of each file of the last checkpoint of a run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    train(folder, save_every=STEPS)
    return sums(folder / LAST)


def sums(folder: Path) -> dict[str, str]:
    """Of everything but the time and the machine."""
    return {f.name: file_sha256(f) for f in folder.iterdir() if f.name not in ("state.json", CHECKSUMS)}


def test_interrupted_runs_end_with_the_same_bits(tmp_path: Path, whole: dict[str, str]) -> None:
    for kill_after in (2, 5, 11, None):
        train(tmp_path, kill_after, save_every=2)
    assert sums(tmp_path / LAST) == whole
    assert {"model.safetensors", "optimizer.safetensors", "objects.json", "rng.json"} <= set(whole)


def other_rng(part: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        rng = json.loads((folder / "rng.json").read_text())
        mine = rng["ranks"][0]
        if part == "python":
            mine["python"] = random.Random(9).getstate()
        elif part == "numpy":
            mine["numpy"]["state"]["key"].reverse()
        else:
            state = torch.Generator().manual_seed(9).get_state()
            mine["torch"] = base64.b64encode(state.numpy().tobytes()).decode()
        (folder / "rng.json").write_text(json.dumps(rng))

    return change


def forget(name: str) -> Callable[[Path], None]:
    """Put the state of a fresh object in the place of the saved one."""

    def change(folder: Path) -> None:
        other = folder.parent / "fresh"
        run = Training().resume(other, keep=9)
        run.save(1)
        run.close()
        saved, fresh = (json.loads((f / "objects.json").read_text()) for f in (folder, other / "step-00000001"))
        saved["objects"][name] = fresh["objects"][name]
        (folder / "objects.json").write_text(json.dumps(saved))
        if (folder / f"{name}.safetensors").exists() and (other / "step-00000001" / f"{name}.safetensors").exists():
            shutil.copy(other / "step-00000001" / f"{name}.safetensors", folder)

    return change


@pytest.mark.parametrize(
    "lose",
    [
        *(pytest.param(other_rng(part), id=f"{part} generator") for part in ("python", "numpy", "torch")),
        *(
            pytest.param(forget(name), id=name)
            for name in ("model", "optimizer", "scheduler", "loader", "own", "extra")
        ),
    ],
)
def test_every_part_of_the_state_is_needed(
    tmp_path: Path, whole: dict[str, str], lose: Callable[[Path], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tmp_path, kill_after=6)
    given = tmp_path / "step-00000006"
    lose(given)
    monkeypatch.setenv(Variable.CHECKPOINT_DIR, str(tmp_path / "new"))
    monkeypatch.setenv(Variable.RESUME_FROM, str(given))
    train(tmp_path)
    assert sums(tmp_path / "new" / LAST)["model.safetensors"] != whole["model.safetensors"]


def test_killed_at_any_moment_it_goes_on_with_the_same_bits(tmp_path: Path) -> None:
    moments = random.Random(5)
    interrupted, whole = tmp_path / "interrupted", tmp_path / "whole"
    for kind in (signal.SIGKILL, signal.SIGTERM, signal.SIGKILL, None):
        process = start_script(interrupted, step_seconds=0.01)
        assert process.stdout is not None
        if kind is not None:
            for _ in range(moments.randint(1, 3)):
                process.stdout.readline()
            time.sleep(moments.uniform(0, 0.02))  # somewhere in a step or a save
            process.send_signal(kind)
        _, errors = process.communicate(timeout=300)
        expected = {signal.SIGKILL: -signal.SIGKILL, signal.SIGTERM: 75, None: 0}[kind]
        assert process.returncode == expected, errors
        if kind is not signal.SIGKILL:
            assert not list(interrupted.glob("*.partial"))
        assert [fault(folder) for folder in finished_folders(interrupted)].count(None) >= 1
    assert start_script(whole, step_seconds=0).wait() == 0
    assert sums(interrupted / LAST) == sums(whole / LAST)


def start_script(folder: Path, step_seconds: float) -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "tests.workload.script", str(folder), str(step_seconds)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)


def test_follows_the_contract(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    control = tmp_path / "control.json"
    Control(checkpoint_seconds=3600.0).write(control)
    monkeypatch.setenv(Variable.CHECKPOINT_DIR, str(tmp_path / "saved"))
    monkeypatch.setenv(Variable.METRICS_FILE, str(tmp_path / "metrics.jsonl"))
    monkeypatch.setenv(Variable.CONTROL_FILE, str(control))
    monkeypatch.setenv(Variable.STOP_AT_STEP, "4")
    run = Training().resume(tmp_path / "not here", every_seconds=0.0)
    assert not run.maybe_save(1), "the agent's interval counts"
    Control(checkpoint_seconds=0.0).write(control)
    os.utime(control, ns=(1, 1))
    assert run.maybe_save(2)
    run.log(3, loss=torch.tensor(2.5))
    with pytest.raises(SystemExit) as exit_:
        run.maybe_save(4, val_loss=1.5)
    assert exit_.value.code == 75
    saved = finished_folders(tmp_path / "saved")
    assert [folder.name for folder in saved] == ["step-00000002", "step-00000004"]
    assert json.loads((saved[-1] / "state.json").read_text())["val_loss"] == 1.5
    lines = [json.loads(line) for line in (tmp_path / "metrics.jsonl").open()]
    assert [(line["step"], line.get("train_loss"), line.get("val_loss")) for line in lines if "loss" in str(line)] == [
        (3, 2.5, None),
        (4, None, 1.5),
    ]
    monkeypatch.setenv(Variable.RESUME_FROM, str(saved[-1]))
    with pytest.raises(SystemExit) as exit_:
        Training().resume(tmp_path)
    assert exit_.value.code == 75, "a rung that is reached already"


def test_keeps_the_newest_and_the_best_and_skips_a_damaged_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = Training().resume(tmp_path, keep=2, every_seconds=3600.0)
    for step, loss in enumerate((3.0, 1.0, 2.0, 4.0, 5.0), start=1):
        run.save(step, val_loss=loss)
    run.close()
    assert [folder.name for folder in finished_folders(tmp_path)] == ["step-00000002", "step-00000004", "step-00000005"]
    weights = tmp_path / "step-00000005" / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    run = Training().resume(tmp_path)
    run.close()
    assert (run.step, run.best) == (4, {"step": 2, "val_loss": 1.0})
    assert "step-00000005 is damaged" in capsys.readouterr().err


def test_a_last_save_that_fails_is_a_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = Training().resume(tmp_path, every_seconds=0.0)
    run.maybe_save(1)
    tmp_path.joinpath("step-00000002.partial").write_text("in the way")
    run.maybe_save(2)
    assert "going on, the last checkpoint is that of step 1" in capsys.readouterr().err
    with pytest.raises(CheckpointError, match="step 2 cannot be written"):
        run.save(2)
    with pytest.raises(CheckpointError, match="step 2 cannot be written"):
        list(run.steps(2))
    run.close()


class Tied(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.head = nn.Embedding(5, 3), nn.Linear(3, 5, bias=False)
        self.head.weight = self.embedding.weight
        self.register_buffer("empty", torch.zeros(0))
        self.register_buffer("halves", torch.arange(3, dtype=torch.bfloat16))
        self.register_buffer("turned", torch.arange(6.0).reshape(2, 3).T)


def test_weights_are_plain_safetensors_and_every_value_comes_back(tmp_path: Path) -> None:
    extra: dict[str, Any] = {
        "nested": {1: (1, [True, None]), "$odd": {"x"}, "bytes": b"\x00\xff"},
        "numbers": [float("inf"), 0.1, 2**70, np.float32(0.5), np.int64(3)],
        "array": np.arange(4, dtype=np.uint16),
        "no dimension": np.array(1.5, dtype=np.float32),
        "scalar": torch.tensor(7),
    }
    model = Tied()
    run = resume_or_start(model, extra=extra, folder=tmp_path)
    run.save(1)
    run.close()
    tensors = load_file(tmp_path / "step-00000001" / "model.safetensors")
    assert set(tensors) == {"embedding.weight", "empty", "halves", "turned"}, "tied weights once, as others do it"

    found: dict[str, Any] = {"new": 1}
    again = Tied()
    resume_or_start(nn.DataParallel(again), extra=found, folder=tmp_path).close()
    assert torch.equal(again.head.weight, model.head.weight)
    assert again.head.weight is again.embedding.weight
    assert torch.equal(again.turned, model.turned)
    assert found["nested"] == extra["nested"]
    assert found["numbers"] == extra["numbers"]
    assert list(map(type, found["numbers"])) == list(map(type, extra["numbers"])), "each computes as it did"
    assert found["no dimension"].dtype == np.float32
    assert found["array"].dtype == np.uint16
    assert found["scalar"] == 7
    assert found["new"] == 1


def test_says_what_cannot_be_saved_or_does_not_fit(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="thing is a object, which has no state_dict"):
        resume_or_start(thing=object(), folder=tmp_path)
    run = resume_or_start(extra={"a": {"b": print}}, folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"extra\.a\.b is a builtin_function_or_method.*never a pickle"):
        run.save(1)
    run.close()
    assert finished_folders(tmp_path) == []

    run = resume_or_start(nn.Linear(2, 2), folder=tmp_path)
    with pytest.raises(ConfigError, match="another training"):
        resume_or_start(nn.Linear(2, 2), folder=tmp_path)
    run.save(1)
    run.close()
    with pytest.raises(CheckpointError, match="holds the states of model, and this script gives model, model_2"):
        resume_or_start(nn.Linear(2, 2), nn.Linear(2, 2), folder=tmp_path)
    with pytest.raises(CheckpointError, match=r"the state of model in .* does not fit"):
        resume_or_start(nn.Linear(3, 2), folder=tmp_path)


def test_importing_it_imports_neither_torch_nor_numpy() -> None:
    code = "import sys, crucible.workload; print({'torch', 'numpy', 'pydantic', 'prefect'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "set()"
