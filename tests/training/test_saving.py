"""A checkpoint is whole or absent, costs the loop only a snapshot, and never holds what is no number."""

from __future__ import annotations

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from crucible.contract import finished_folders
from crucible.errors import CheckpointError, TrainingError
from crucible.training.data import Dataset
from crucible.training.saver import Saver
from crucible.training.trainer import Trainer
from crucible.workload.clock import CheckpointClock
from crucible.workload.folders import FilePlan, fault, newest_sound, prune, safetensors_header, sweep, write_folder
from crucible.workload.metrics import Metrics
from tests.training.conftest import TINY, Train


def make_saver(folder: Path, tensor: torch.Tensor) -> Saver:
    header = safetensors_header({"a": (2, 3), "b": (tensor.numel() - 6,)})
    return Saver(folder, {"model.safetensors": ([tensor], header)}, None, lambda line: None)


def save_and_wait(saver: Saver, step: int) -> None:
    saver.save(step, SMALL, time.perf_counter())
    saver.poll(wait=True)


SMALL = {"optimizer.safetensors": b"", "rng.json": b"{}", "state.json": b"{}"}


def test_a_kill_while_an_old_one_is_removed_leaves_only_whole_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for step in (1, 2):
        write_folder(tmp_path, step, [FilePlan(name, content) for name, content in SMALL.items()])

    def killed(folder: Path, **_: object) -> None:
        if folder.exists():
            (folder / "rng.json").unlink()
            raise KeyboardInterrupt

    monkeypatch.setattr("crucible.workload.folders.shutil.rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        prune(tmp_path, 1, None, 2)
    assert [fault(folder, frozenset()) for folder in finished_folders(tmp_path)] == [None]
    monkeypatch.undo()
    assert len(sweep(tmp_path)) == 1


def test_background_save_holds_the_moment_of_the_snapshot(tmp_path: Path) -> None:
    state = torch.arange(10, dtype=torch.float32)
    saver = make_saver(tmp_path, state)
    assert saver.save(7, SMALL, time.perf_counter()) is None
    state.fill_(-1)  # the loop goes on at once
    report = saver.poll(wait=True)
    saver.close()
    assert report is not None
    assert report.step == saver.saved_step == 7
    tensors = load_file(tmp_path / "step-00000007" / "model.safetensors")
    assert tensors["a"].tolist() == [[0, 1, 2], [3, 4, 5]]
    assert tensors["b"].tolist() == [6, 7, 8, 9]
    assert fault(tmp_path / "step-00000007") is None


@pytest.mark.parametrize("background", [True, False])
def test_what_is_no_number_is_not_saved(tmp_path: Path, background: bool) -> None:
    saver = make_saver(tmp_path, torch.tensor([1.0] * 9 + [float("nan")]))
    if background:
        saver.save(7, SMALL, time.perf_counter())
        with pytest.raises(CheckpointError, match="NaN or infinity"):
            saver.poll(wait=True)
    else:
        with pytest.raises(CheckpointError, match="NaN or infinity"):
            saver.save_now(7, SMALL, time.perf_counter())
    saver.close()
    assert list(tmp_path.iterdir()) == []


def test_diverged_training_stops_and_keeps_its_last_good_checkpoint(
    tmp_path: Path, train: Train, dataset: Dataset
) -> None:
    train(tmp_path, until=5)
    trainer = Trainer(TINY, dataset)
    trainer.resume(tmp_path / "step-00000005")

    def poison() -> bool:
        if trainer.step == 8:
            trainer.optimizer.weights[3] = float("nan")
        return False

    with pytest.raises(TrainingError, match="no longer a number at step 9"):
        trainer.run(tmp_path, metrics=Metrics(None), stop=poison)
    assert [folder.name for folder in finished_folders(tmp_path)] == ["step-00000005"]


@pytest.mark.skipif(not hasattr(resource, "prlimit"), reason="needs Linux to limit the writer's files")
def test_full_disk_is_survived_once_there_is_a_checkpoint(tmp_path: Path, dataset: Dataset) -> None:
    said: list[str] = []
    config = TINY.with_overrides({"checkpoint_interval_seconds": 1e-9, "eval_interval": 1000})
    trainer = Trainer(config, dataset, log=said.append)

    def fill_the_disk_for_a_while() -> bool:
        checkpointer = trainer._checkpointer
        assert checkpointer is not None
        assert checkpointer.saver._writer is not None
        if trainer.step in (10, 20):
            checkpointer.collect(wait=True)
            limit = 40_000 if trainer.step == 10 else resource.RLIM_INFINITY
            process = checkpointer.saver._writer._process.pid
            resource.prlimit(process, resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        elif trainer.step > 20:
            checkpointer.collect(wait=True)
        return False

    result = trainer.run(tmp_path, metrics=Metrics(None), stop=fill_the_disk_for_a_while)
    assert result.complete
    failures = [line for line in said if "File too large; training continues and tries again" in line]
    assert failures
    steps = [int(folder.name[5:]) for folder in finished_folders(tmp_path)]
    assert not set(range(11, 20)) & set(steps)
    assert {25, 30} <= set(steps)
    assert all(fault(folder) is None for folder in finished_folders(tmp_path))


def test_a_stop_during_an_evaluation_does_not_wait_for_its_end(tmp_path: Path, dataset: Dataset) -> None:
    trainer = Trainer(TINY.with_overrides({"eval_iters": 1000}), dataset)
    looks = 0

    def stop() -> bool:
        nonlocal looks
        looks += trainer.step == 10
        return looks > 3  # of the 2,000 batches

    result = trainer.run(tmp_path, metrics=Metrics(tmp_path / "metrics.jsonl"), stop=stop)
    assert (result.step, looks) == (10, 5)
    assert json.loads((tmp_path / "step-00000010" / "state.json").read_text())["estimated_val_loss"] is None

    resumed = Trainer(TINY, dataset)
    resumed.resume(tmp_path / "step-00000010")
    metrics = tmp_path / "resumed.jsonl"
    resumed.run(tmp_path, metrics=Metrics(metrics), stop_at_step=12)
    evaluated = [line["step"] for line in map(json.loads, metrics.open()) if "val_loss" in line]
    assert evaluated == [10, 12], "what was interrupted is evaluated when training resumes"


def test_full_disk_at_the_end_is_a_failure(tmp_path: Path, dataset: Dataset) -> None:
    trainer = Trainer(TINY, dataset)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fill_the_disk() -> bool:
        if trainer.step == 30:
            resource.setrlimit(resource.RLIMIT_FSIZE, (40_000, hard))
        return False

    try:
        with pytest.raises(CheckpointError, match="step 30 cannot be written"):
            trainer.run(tmp_path, metrics=Metrics(None), stop=fill_the_disk)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert "step-00000030" not in [folder.name for folder in finished_folders(tmp_path)]


def test_kill_in_the_middle_of_a_save_leaves_nothing_trusted(tmp_path: Path) -> None:
    # The body is a pipe's worth of zeros that takes long enough to be killed in: 400 MB, at full speed 0.5 s.
    code = (
        "import sys; from pathlib import Path; from crucible.workload.folders import *\n"
        "write_folder(Path(sys.argv[1]), 3, [FilePlan('model.safetensors', b'', (memoryview(bytes(400 << 20)),))])"
    )
    process = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)])
    partial = tmp_path / "step-00000003.partial" / "model.safetensors"
    while process.poll() is None and not (partial.exists() and partial.stat().st_size):
        time.sleep(0.001)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert finished_folders(tmp_path) == []
    assert partial.parent.exists()


def test_training_waits_for_saves_where_memory_is_short(
    tmp_path: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Saver, "_start_writer", lambda self, lock: None)
    said: list[str] = []
    config = TINY.with_overrides({"checkpoint_interval_seconds": 1e-9})
    trainer = Trainer(config, dataset, log=said.append)
    trainer.run(tmp_path, metrics=Metrics(None))
    assert any("training waits while checkpoints are written" in line for line in said)
    assert [folder.name for folder in finished_folders(tmp_path)] == [f"step-{step:08d}" for step in range(1, 31)]


def test_newest_and_best_are_kept(tmp_path: Path) -> None:
    for step in (10, 20, 30, 40):
        (tmp_path / f"step-{step:08d}").mkdir()
    (tmp_path / "step-00000050.partial").mkdir()
    prune(tmp_path, keep=2, best_step=10, saved_step=40)
    assert [folder.name for folder in finished_folders(tmp_path)] == ["step-00000010", "step-00000030", "step-00000040"]


def test_a_damaged_one_of_a_later_step_does_not_take_the_place_of_a_new_one(tmp_path: Path) -> None:
    for step in (10, 20, 15):
        write_folder(tmp_path, step, [FilePlan(name, content) for name, content in SMALL.items()])
    (tmp_path / "step-00000020" / "rng.json").unlink()
    prune(tmp_path, keep=1, best_step=None, saved_step=15)
    newest = newest_sound(tmp_path, lambda line: None)
    assert newest is not None
    assert newest.name == "step-00000015"


def test_without_the_process_that_writes_the_loop_writes_itself(tmp_path: Path) -> None:
    saver = make_saver(tmp_path, torch.arange(10, dtype=torch.float32))
    assert saver._writer is not None
    saver._writer._process.kill()  # the system does, where memory is short
    saver._writer._process.wait()
    with pytest.raises(CheckpointError, match="has ended"):
        save_and_wait(saver, 1)
    report = saver.save(2, SMALL, time.perf_counter())
    saver.close()
    assert report is not None
    assert fault(tmp_path / "step-00000002") is None


def test_a_request_to_stop_that_nobody_reads_about_is_followed() -> None:
    code = "import os, signal, crucible.workload.stop as s; s.StopRequest(); os.kill(os.getpid(), signal.SIGTERM)"
    with Path("/dev/full").open("wb") as full:
        assert subprocess.run([sys.executable, "-c", code], stderr=full, check=False).returncode == 75


def test_interval_comes_from_the_agent_then_the_config_then_the_cost(tmp_path: Path) -> None:
    control = tmp_path / "control.json"
    said: list[str] = []
    clock = CheckpointClock(10.0, said.append, {"CRUCIBLE_CONTROL_FILE": str(control)})
    assert not clock.due()
    assert clock.seconds == 10, "the agent has not published anything yet"
    control.write_text('{"checkpoint_seconds": 0.0}')
    assert clock.due()
    control.write_text('{"checkpoint_sec')
    os.utime(control, ns=(1, 1))
    assert clock.due()
    assert clock.due(), "half a file changes nothing"
    assert len(said) == 1
    assert str(control) in said[0]
    adapting = CheckpointClock(None, environment={})
    adapting.measured(stall_seconds=0.1, write_seconds=2.0)
    # No agent, nobody who takes the machine away: one interruption a day is assumed.
    assert adapting.seconds == pytest.approx((2 * 0.1 * 86400) ** 0.5, rel=0.01)
    for _ in range(3):
        adapting.measured(stall_seconds=0.1, write_seconds=400.0)
    assert adapting.seconds == 600, "saves must not queue up"


def test_state_can_be_read_with_cat(tmp_path: Path, train: Train) -> None:
    train(tmp_path)
    folder = tmp_path / "step-00000030"
    state = json.loads((folder / "state.json").read_text())
    assert (state["step"], state["config_digest"], state["vocab_size"]) == (30, TINY.digest(), 17)
    assert state["environment"]["gemm"] == "mkl"
    assert state["environment"]["threads"] == 1
    assert (folder / "state.json").stat().st_size < 5000
