"""nanoGPT and this trainer go on with each other's trainings, data and settings included."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from crucible.config import TrainConfig
from crucible.datasets.build import build_dataset
from crucible.datasets.config import DatasetConfig
from crucible.datasets.fetch import fetch_dataset
from crucible.evaluation.checkpoint import load_trained
from crucible.evaluation.nanogpt import export_nanogpt
from crucible.store import Store
from crucible.training.__main__ import main
from crucible.training.data import Dataset
from crucible.training.initial_files import read_initial
from crucible.training.trainer import Trainer
from tests.evaluation.conftest import Trained
from tests.evaluation.nanogpt_like import Training, prepare

CONFIG = """
# config/train_small.py, in the manner of nanoGPT's own
out_dir = '{out}'
eval_interval = 10
eval_iters = 20
dataset = 'small'
init_from = 'resume'
batch_size = 4 * 2
max_iters = 60
lr_decay_iters = max_iters
learning_rate = 3e-3
min_lr = learning_rate / 10
warmup_iters = 5
beta2 = 0.99
device = 'cpu'
compile = False
"""
SETTINGS = {
    "batch_size": 8,
    "max_iters": 60,
    "lr_decay_iters": 60,
    "learning_rate": 3e-3,
    "min_lr": 3e-4,
    "warmup_iters": 5,
    "decay_lr": True,
    "weight_decay": 0.1,
    "beta1": 0.9,
    "beta2": 0.99,
    "grad_clip": 1.0,
    "seed": 1337,
    "dtype": "float16",
    "out_dir": "out",
}
"""What CONFIG comes to in train.py, as its checkpoint records it."""


def test_nanogpts_checkpoint_bins_and_config_go_on_here(
    tmp_path: Path, store: Store, capsys: pytest.CaptureFixture[str]
) -> None:
    data, file = tmp_path / "small", tmp_path / "out" / "ckpt.pt"
    shape = {"n_layer": 2, "n_head": 2, "n_embd": 32, "block_size": 24, "bias": False, "dropout": 0.0}
    theirs = Training.start({**shape, "vocab_size": prepare(data)}, SETTINGS)
    before = [theirs.step(*theirs.batch(data)) for _ in range(30)]
    theirs.best_val_loss = theirs.estimate(data)
    theirs.save(file)

    info = build_dataset(DatasetConfig(source=str(data)), store)
    dataset = fetch_dataset(store, info.digest, tmp_path / "cache")
    initial = read_initial(file, resume=True)
    config = TrainConfig.parse(initial.settings({}, {"device": "cpu", "threads": 1, "fast_gemm": "off"}))
    trainer = Trainer(config, Dataset(dataset))
    trainer.begin_from(initial)
    tokens, targets = trainer._batch(0, range(config.batch_size))
    with torch.no_grad():
        torch.testing.assert_close(trainer.model(tokens), theirs.model(tokens), rtol=1e-5, atol=1e-5)
    trainer.train_step()
    theirs.step(tokens, targets)  # the same update, which the moments and the learning rate decide
    assert trainer.step == theirs.iter_num == 31
    require_equal(trainer, theirs)

    written = tmp_path / "train_small.py"
    written.write_text(CONFIG.format(out=file.parent))
    command = ["--config", str(written), "--data", str(dataset), "--out", str(tmp_path / "ours")]
    assert main([*command, "--set", "fast_gemm=off", "threads=1"]) == 0
    printed = capsys.readouterr().err
    assert "dataset: give the dataset beside the configuration" in printed
    losses = {
        int(step): float(loss) for step, loss in re.findall(r"step (\d+): train loss .*val loss ([\d.]+)", printed)
    }
    assert min(losses) == 30
    assert losses[30] == pytest.approx(float(theirs.best_val_loss), abs=0.05), "it goes on where it was"
    assert losses[60] < losses[30] < before[0]


def test_our_export_goes_on_in_nanogpt(trained: Callable[..., Trained], tmp_path: Path) -> None:
    example = trained("byte", True)
    longer = example.config.with_overrides({"max_iters": 9, "lr_decay_iters": 6})
    export_nanogpt(load_trained(example.checkpoints[-1]), tmp_path, best_val_loss=1.5)
    trainer = Trainer(longer, Dataset(example.data))
    trainer.resume(example.checkpoints[-1])
    given: dict[str, Any] = {**longer.model_dump(), "lr_decay_iters": longer.decay_end}

    theirs = Training.resume(tmp_path / "ckpt.pt", given)

    assert (theirs.iter_num, theirs.best_val_loss) == (6, 1.5)
    tokens, targets = trainer._batch(0, range(longer.batch_size))
    with torch.no_grad():
        torch.testing.assert_close(theirs.model(tokens), trainer.model(tokens), rtol=1e-5, atol=1e-5)
    trainer.train_step()
    theirs.step(tokens, targets)
    require_equal(trainer, theirs)


def require_equal(trainer: Trainer, theirs: Training) -> None:
    pairs = zip(theirs.model.named_parameters(), trainer.model.parameters(), strict=True)
    for (name, their), own in pairs:
        torch.testing.assert_close(own, their, rtol=1e-5, atol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
