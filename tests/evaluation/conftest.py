"""Models of our own trainer on real datasets, one for each kind of tokenizer: small and barely trained."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import pytest

from crucible.config import TrainConfig
from crucible.contract import finished_folders
from crucible.datasets.build import build_dataset
from crucible.datasets.config import DatasetConfig
from crucible.datasets.fetch import fetch_dataset
from crucible.store import store_at
from crucible.training.data import Dataset
from crucible.training.trainer import Trainer
from crucible.workload.metrics import Metrics

BEYOND_PADDING = 1100
"""A vocabulary whose embedding gets rows that stand for no token."""


@dataclass(frozen=True)
class Trained:
    data: Path
    config: TrainConfig
    checkpoints: list[Path]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Trained]:
    """`trained(tokenizer, bias)`: six steps, saved at steps 0 and 6."""
    folder = tmp_path_factory.mktemp("models")
    text = folder / "text.txt"
    lines = [f"Line {n}: naïve – {n * n % 977} words, {'abcdefghij'[n % 10] * 3}{n % 89}\n" for n in range(1500)]
    text.write_text("".join(lines), encoding="utf-8")
    store = store_at((folder / "store").as_uri())

    @cache
    def train(tokenizer: str, bias: bool) -> Trained:
        vocab_size = BEYOND_PADDING if tokenizer == "bpe" else None
        wanted = DatasetConfig(source=str(text), tokenizer=tokenizer, vocab_size=vocab_size)
        data = fetch_dataset(store, build_dataset(wanted, store).digest, folder / "cache")
        config = TrainConfig(
            n_layer=2,
            n_head=2,
            n_embd=16,
            block_size=16,
            batch_size=4,
            bias=bias,
            max_iters=6,
            warmup_iters=2,
            learning_rate=0.03,
            device="cpu",
            threads=1,
            fast_gemm="off",
        )
        checkpoints = folder / f"{tokenizer}-{bias}"
        Trainer(config, Dataset(data)).run(checkpoints, metrics=Metrics(None), stop=lambda: True)
        Trainer(config, Dataset(data)).run(checkpoints, metrics=Metrics(None))
        return Trained(data, config, finished_folders(checkpoints))

    return train
