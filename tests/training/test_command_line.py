"""`python -m crucible.training` in this process: what it resumes from, what it refuses, and how it says so."""

from __future__ import annotations

import fcntl
import json
import os
import resource
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from crucible.contract import finished_folders
from crucible.training.__main__ import main
from crucible.training.data import Dataset
from crucible.training.evaluate import estimate_loss
from crucible.training.model import load_model
from crucible.workload.lock import lock_folder
from tests.training.conftest import TINY, train_in, write_dataset


@pytest.fixture
def config_file(tmp_path: Path) -> Path:
    path = tmp_path / "config.json"
    path.write_text(TINY.model_dump_json())
    return path


def test_damaged_checkpoints_are_reported_and_passed_over(
    tmp_path: Path, data_folder: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _, whole = train_in(tmp_path / "whole", Dataset(data_folder))
    out = tmp_path / "out"
    for until in (5, 10, 15):
        before = finished_folders(out / "checkpoints")
        train_in(out / "checkpoints", Dataset(data_folder), resume=before[-1] if before else None, until=until)
    sound, truncated, flipped = finished_folders(out / "checkpoints")
    os.truncate(truncated / "optimizer.safetensors", 1000)
    content = bytearray((flipped / "model.safetensors").read_bytes())
    content[-3] ^= 16
    (flipped / "model.safetensors").write_bytes(content)
    leftover = out / "checkpoints" / "step-00000029.partial"
    leftover.mkdir()
    (leftover / "state.json").write_text('{"step": 29}')

    assert main(["--config", str(config_file), "--data", str(data_folder), "--out", str(out), "--json"]) == 0
    output, words = capsys.readouterr()
    assert f"checkpoint {flipped} is damaged and not used: model.safetensors is not what was written" in words
    assert f"checkpoint {truncated} is damaged and not used: optimizer.safetensors has 1000 bytes instead of" in words
    assert "removed step-00000029.partial, left by an interrupted save" in words
    assert f"resumed at step 5 from {sound}" in words
    assert json.loads(output.splitlines()[-1])["weights_sha256"] == whole.weights_sha256


def test_text_file_is_tokenized_and_a_finished_run_only_reports(
    tmp_path: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    text = tmp_path / "text.txt"
    text.write_text("".join(f"{number} is {'even' if number % 2 == 0 else 'odd'}.\n" for number in range(300)))
    command = ["--config", str(config_file), "--text", str(text), "--out", str(tmp_path / "out"), "--json"]
    assert main([*command, "--set", "max_iters=6", "dropout=0"]) == 0
    first = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert main([*command, "--set", "max_iters=6", "dropout=0"]) == 0
    second = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert first["step"] == 6
    assert {**second, "tokens_per_second": 0} == {**first, "tokens_per_second": 0}


def test_agent_contract(tmp_path: Path, data_folder: Path, config_file: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command = ["--config", str(config_file), "--data", str(data_folder)]
    monkeypatch.setenv("CRUCIBLE_METRICS_FILE", str(tmp_path / "metrics"))
    monkeypatch.setenv("CRUCIBLE_CHECKPOINT_DIR", str(tmp_path / "first"))
    monkeypatch.setenv("CRUCIBLE_STOP_AT_STEP", "12")
    assert main(command) == 75
    monkeypatch.setenv("CRUCIBLE_CHECKPOINT_DIR", str(tmp_path / "second"))
    monkeypatch.setenv("CRUCIBLE_RESUME_FROM", str(tmp_path / "first" / "step-00000012"))
    monkeypatch.delenv("CRUCIBLE_STOP_AT_STEP")
    assert main(command) == 0

    paused = json.loads((tmp_path / "first" / "step-00000012" / "state.json").read_text())
    assert paused["val_loss"] > 0  # a sweep compares trials that were paused
    ended = json.loads((tmp_path / "second" / "step-00000030" / "state.json").read_text())
    assert ended["config_digest"] == TINY.digest()
    lines = [json.loads(line) for line in (tmp_path / "metrics").read_text().splitlines()]
    steps = [line["step"] for line in lines if "train_loss" in line]
    assert steps == list(range(1, 31))
    assert all(
        {"time", "tokens_per_second", "learning_rate", "max_iters"} <= set(line)
        for line in lines
        if "train_loss" in line
    )
    saves = [line for line in lines if "checkpoint_bytes" in line]
    assert {"checkpoint_stall_seconds", "checkpoint_write_seconds"} <= set(saves[-1])
    assert [line["val_loss"] for line in lines if "val_loss" in line][-1] == ended["val_loss"]

    trained, _ = load_model(tmp_path / "second" / "step-00000030")
    estimate = estimate_loss(trained, Dataset(data_folder), "val", TINY.eval_iters)
    assert ended["estimated_val_loss"] == pytest.approx(estimate)  # as at every evaluation before
    assert ended["estimated_val_loss"] != ended["val_loss"]
    losses = {line["step"]: line["val_loss"] for line in lines if "val_loss" in line}
    losses |= {12: paused["estimated_val_loss"], 30: ended["estimated_val_loss"]}
    assert ended["best"] == {"step": (best := min(losses, key=lambda step: losses[step])), "val_loss": losses[best]}


@contextmanager
def largest_file(size: int) -> Iterator[None]:
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_full_disk_stops_a_run_that_has_no_checkpoint(
    tmp_path: Path, data_folder: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    with largest_file(40_000):  # less than the optimizer's file
        assert main(["--config", str(config_file), "--data", str(data_folder), "--out", str(out)]) == 1
    last = capsys.readouterr().err.splitlines()[-1]
    assert last.startswith("error: the checkpoint of step")
    assert f"cannot be written to {out / 'checkpoints'}: File too large" in last
    assert not list((out / "checkpoints").glob("step-*"))


def test_two_trainings_may_not_share_a_folder(
    tmp_path: Path, data_folder: Path, config_file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["--config", str(config_file), "--data", str(data_folder), "--out", str(tmp_path)]
    with lock_folder(tmp_path / "checkpoints", print):
        assert main(command) == 1
    assert f"error: another training (process {os.getpid()}) writes to" in capsys.readouterr().err
    assert main([*command, "--set", "max_iters=5"]) == 0  # and a lock whose owner is gone does not count


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (
            ["--data", "SHORT", "--set", "fast_gemm=off"],
            "block_size = 64 is longer than the data: the val split has 10",
        ),
        (["--data", "nowhere", "--set", "fast_gemm=off"], "nowhere cannot be read"),
        (["--text", "none.txt"], "none.txt is not a file"),
        (["--data", "DATA", "--set", "max_iters=-1"], "max_iters = '-1' is not valid"),
        (["--data", "DATA", "--set", "n_layers=2"], "did you mean n_layer?"),
        (["--data", "DATA", "--set", "n_layer"], "--set n_layer is not of the form key=value"),
        (["--data", "DATA", "--preset", "cpu-smal"], "preset = 'cpu-smal' does not exist"),
        (["--data", "DATA", "--set", "device=cuda"], "torch sees 0 GPUs"),
        ([], "--text or --data is missing"),
    ],
)
def test_bad_input_is_one_message_and_leaves_nothing(
    arguments: list[str],
    complaint: str,
    tmp_path: Path,
    data_folder: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if "device=cuda" in arguments and __import__("torch").cuda.is_available():
        pytest.skip("there is a GPU")
    short = write_dataset(tmp_path / "short", val=10)
    places = {"SHORT": str(short), "DATA": str(data_folder)}
    given = [places.get(argument, argument) for argument in arguments]
    assert main([*given, "--out", str(tmp_path / "out")]) == 1
    words = capsys.readouterr().err
    assert words.startswith("error: ")
    assert complaint in words
    assert words.count("\n") == 1
    assert not list(tmp_path.glob("out/checkpoints/step-*"))


@pytest.mark.parametrize("where", ["waiting for a lock", "before the first step"])
def test_a_stop_while_preparing_is_not_kept_waiting(tmp_path: Path, data_folder: Path, where: str) -> None:
    """Preparing can take minutes, and there is nothing to save yet."""
    out = tmp_path / "out"
    (out / "checkpoints").mkdir(parents=True)
    config = tmp_path / "config.json"
    # Its first step would take minutes.
    config.write_text(json.dumps({**json.loads(TINY.model_dump_json()), "gradient_accumulation_steps": 65_536}))
    with (out / "checkpoints" / ".lock").open("w") as lock:
        if where == "waiting for a lock":
            fcntl.flock(lock, fcntl.LOCK_EX)
        process = subprocess.Popen(
            [sys.executable, "-m", "crucible.training", "--config", config, "--data", data_folder, "--out", out],
            stderr=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        sign = "waiting for the last save" if where == "waiting for a lock" else "parameters on"
        lines = iter(process.stderr.readline, "")
        assert next((line for line in lines if sign in line), None)
        process.terminate()
        assert process.wait(300) == 75
        assert "nothing to save" in process.stderr.read()
