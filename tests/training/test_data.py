"""A batch is a function of seed and step, whatever the data lies in and however many processes share it."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch

import crucible.training.data as data
from crucible.errors import ConfigError, DataError
from crucible.training.data import EVAL_STREAM, TRAIN_STREAM, Dataset
from tests.training.conftest import write_dataset


def test_batches_depend_on_seed_stream_and_step_alone(dataset: Dataset) -> None:
    def batch(seed: int = 1, stream: int = TRAIN_STREAM, step: int = 5) -> torch.Tensor:
        return dataset.train.batch(seed, stream, step, slice(0, 4), 4, 16)

    expected = batch()
    for other in (batch(seed=2), batch(stream=EVAL_STREAM), batch(step=6)):
        assert not torch.equal(expected, other)
    assert torch.equal(expected, batch())
    assert expected.shape == (4, 17)
    assert expected.dtype == torch.int64


def test_processes_share_out_the_sequences_of_one_step(dataset: Dataset) -> None:
    whole = dataset.train.batch(1, TRAIN_STREAM, 5, slice(0, 8), 8, 16)
    parts = [dataset.train.batch(1, TRAIN_STREAM, 5, slice(first, first + 2), 8, 16) for first in (0, 2, 4, 6)]
    assert torch.equal(whole, torch.cat(parts))


def test_mapped_shards_read_like_memory(data_folder: Path, dataset: Dataset, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(data, "_IN_MEMORY_BYTES", 0)
    mapped = Dataset(data_folder)
    assert mapped.train._whole is None
    assert np.array_equal(mapped.train.read(0, 4000), dataset.train.read(0, 4000))  # across three shards
    for step in range(20):
        one = mapped.train.batch(1, TRAIN_STREAM, step, slice(0, 8), 8, 900)
        assert torch.equal(one, dataset.train.batch(1, TRAIN_STREAM, step, slice(0, 8), 8, 900))


def test_starts_reach_the_first_and_the_last_token(tmp_path: Path) -> None:
    tokens = Dataset(write_dataset(tmp_path, train=20)).train
    starts = {
        tuple(row) for step in range(40) for row in tokens.batch(1, TRAIN_STREAM, step, slice(0, 4), 4, 16).tolist()
    }
    assert starts == {tuple(tokens.read(start, 17).tolist()) for start in range(4)}


def test_what_is_no_whole_dataset_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read"):
        Dataset(tmp_path / "none")
    folder = write_dataset(tmp_path / "short")
    (folder / "train-00001.bin").write_bytes(b"\0" * 10)
    with pytest.raises(DataError, match=r"train-00001.bin has 10 bytes instead of"):
        Dataset(folder)
    folder = write_dataset(tmp_path / "meta")
    meta = json.loads((folder / "meta.json").read_text())
    del meta["splits"]["val"]
    (folder / "meta.json").write_text(json.dumps(meta))
    with pytest.raises(DataError, match=r"meta.json is damaged"):
        Dataset(folder)


def test_block_size_must_fit_both_splits(dataset: Dataset) -> None:
    dataset.require_block_size(699)
    with pytest.raises(ConfigError, match=r"block_size = 700 .* val split has 700 tokens; use block_size = 699"):
        dataset.require_block_size(700)
