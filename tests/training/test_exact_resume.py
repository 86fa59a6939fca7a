"""A run that was interrupted ends with the same bits, and every part of the saved state is needed for it."""

from __future__ import annotations

import base64
import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import NamedTuple

import pytest
import torch
from safetensors.torch import load_file, save_file

from crucible.config import TrainConfig
from crucible.errors import CheckpointError, ConfigError
from crucible.training.data import Dataset
from crucible.training.trainer import Result, Trainer
from crucible.workload.folders import CHECKSUMS, MODEL, OPTIMIZER, RNG, STATE
from tests.training.conftest import TINY, Train, train_in

HALF = TINY.with_overrides({"dtype": "float16"})
TWO_THREADS = TINY.with_overrides({"dropout": 0.0, "threads": 2})


class Run(NamedTuple):
    config: TrainConfig
    result: Result
    checkpoint: Path


def change_json(file: Path, change: Callable[[dict], None]) -> None:
    content = json.loads(file.read_text())
    change(content)
    file.write_text(json.dumps(content))


def zero_moment(prefix: str) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        tensors = load_file(folder / OPTIMIZER)
        changed = {n: torch.zeros_like(t) if n.startswith(prefix) else t.clone() for n, t in tensors.items()}
        save_file(changed, folder / OPTIMIZER)

    return change


def other_weights(folder: Path) -> None:
    tensors = load_file(folder / MODEL)
    save_file({name: tensor + 1e-3 for name, tensor in tensors.items()}, folder / MODEL)


def other_generator(folder: Path) -> None:
    fresh = base64.b64encode(torch.Generator().manual_seed(TINY.seed).get_state().numpy().tobytes()).decode()
    change_json(folder / RNG, lambda rng: rng["ranks"][0].update(torch=fresh))


def set_state(**values: object) -> Callable[[Path], None]:
    return lambda folder: change_json(folder / STATE, lambda state: state.update(values))


def other_scale(folder: Path) -> None:
    change_json(folder / STATE, lambda state: state["scaler"].update(scale=1.0))


def lose(part: Callable[[Path], None], folder: Path) -> None:
    """Change one part of a checkpoint as if it had not been saved; the checksums are mended, or it would be refused."""
    part(folder)
    sums = json.loads((folder / CHECKSUMS).read_text())
    for name in sums["files"]:
        content = (folder / name).read_bytes()
        sums["files"][name] = {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    (folder / CHECKSUMS).write_text(json.dumps(sums))


Undisturbed = Callable[[TrainConfig], Run]


@pytest.fixture(scope="module")
def undisturbed(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Undisturbed:
    """The run of a config that nothing disturbs, and a checkpoint of its step 12."""

    @cache
    def run(config: TrainConfig) -> Run:
        _, result = train_in(tmp_path_factory.mktemp("whole"), dataset, config)
        folder = tmp_path_factory.mktemp("part")
        train_in(folder, dataset, config, until=12)
        return Run(config, result, folder / "step-00000012")

    return run


@pytest.mark.parametrize("config", [TINY, HALF, TWO_THREADS], ids=["float32", "float16", "rows of two threads"])
def test_interrupted_run_ends_with_the_same_bits(
    tmp_path: Path, train: Train, undisturbed: Undisturbed, config: TrainConfig
) -> None:
    whole = undisturbed(config)
    resume: Path | None = whole.checkpoint
    for until in (13, 23, None):
        _, part = train(tmp_path, config, resume=resume, until=until)
        resume = tmp_path / f"step-{part.step:08d}"
    assert part.complete
    assert part == replace(whole.result, tokens_per_second=part.tokens_per_second)


@pytest.mark.parametrize(
    ("config", "part"),
    [
        pytest.param(TINY, other_weights, id="weights"),
        pytest.param(TINY, zero_moment("exp_avg."), id="first moment"),
        pytest.param(TINY, zero_moment("exp_avg_sq."), id="second moment"),
        pytest.param(TINY, set_state(updates=0), id="optimizer's own step"),
        pytest.param(TINY, other_generator, id="random generator"),
        pytest.param(TINY, set_state(step=11), id="step, and with it data and schedule"),
        pytest.param(HALF, other_scale, id="gradient scaler"),
        pytest.param(TWO_THREADS, zero_moment("exp_avg."), id="first moment, of two threads"),
        pytest.param(TWO_THREADS, set_state(updates=0), id="optimizer's own step, of two threads"),
    ],
)
def test_every_part_of_the_state_is_needed(
    tmp_path: Path,
    train: Train,
    undisturbed: Undisturbed,
    config: TrainConfig,
    part: Callable[[Path], None],
) -> None:
    whole = undisturbed(config)
    folder = tmp_path / whole.checkpoint.name
    shutil.copytree(whole.checkpoint, folder)
    lose(part, folder)
    _, resumed = train(tmp_path / "other", config, resume=folder)
    assert resumed.weights_sha256 != whole.result.weights_sha256


def test_watching_and_saving_do_not_change_the_weights(tmp_path: Path, train: Train, undisturbed: Undisturbed) -> None:
    quiet = undisturbed(TINY).result
    busy = TINY.with_overrides(
        {"eval_interval": 3, "eval_iters": 1, "log_interval": 7, "checkpoint_interval_seconds": 1e-6}
    )
    _, watched = train(tmp_path, busy)
    assert len(list(tmp_path.glob("step-*"))) > 3
    assert watched.weights_sha256 == quiet.weights_sha256


def test_resume_tells_what_it_refuses(tmp_path: Path, train: Train, dataset: Dataset) -> None:
    train(tmp_path, until=5)
    folder = tmp_path / "step-00000005"
    with pytest.raises(ConfigError, match=r"other settings \(learning_rate 0.003 -> 0.001\)"):
        Trainer(TINY.with_overrides({"learning_rate": 1e-3}), dataset).resume(folder)
    with pytest.raises(ConfigError, match="lr_decay_iters 30 -> 40"):
        Trainer(TINY.with_overrides({"max_iters": 40}), dataset).resume(folder)
    with (folder / MODEL).open("r+b") as file:
        file.seek(-5, 2)
        byte = file.read(1)
        file.seek(-5, 2)
        file.write(bytes([byte[0] ^ 1]))
    with pytest.raises(CheckpointError, match=r"model.safetensors is not what was written"):
        Trainer(TINY, dataset).resume(folder)


def test_a_longer_run_may_continue_a_shorter_one_with_the_same_schedule(tmp_path: Path, train: Train) -> None:
    long = TINY.with_overrides({"lr_decay_iters": 30})
    _, whole = train(tmp_path / "whole", long)
    train(tmp_path / "short", long.with_overrides({"max_iters": 12}))
    _, resumed = train(tmp_path / "rest", long, resume=tmp_path / "short" / "step-00000012")
    assert resumed.weights_sha256 == whole.weights_sha256


def test_another_environment_is_reported(tmp_path: Path, train: Train, dataset: Dataset) -> None:
    train(tmp_path, until=5)
    said: list[str] = []
    Trainer(TINY, dataset, gemm="onednn", log=said.append).resume(tmp_path / "step-00000005")
    assert "exact in state but not in bits, since this is another environment: gemm mkl -> onednn" in said


def test_reported_sha256_is_that_of_the_file(tmp_path: Path, train: Train) -> None:
    _, result = train(tmp_path)
    content = (tmp_path / "step-00000030" / MODEL).read_bytes()
    assert hashlib.sha256(content).hexdigest() == result.weights_sha256
