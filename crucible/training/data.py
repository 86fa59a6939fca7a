"""Batches as a pure function of (seed, step): there is no position in the data to save or to lose.

A dataset is a folder as `crucible.datasets` writes it: meta.json, the tokenizer, and shards of raw token ids.
"""

from __future__ import annotations

import json
from itertools import accumulate
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from crucible.errors import ConfigError, DataError

__all__ = ["EVAL_STREAM", "TRAIN_STREAM", "Dataset", "Split", "SplitName"]

SplitName = Literal["train", "val"]

# Independent random streams under one seed, so that evaluation never changes the training data.
TRAIN_STREAM = 0
EVAL_STREAM = 1

_IN_MEMORY_BYTES = 1 << 30
"""Splits below this are read into memory, where gathering a small batch is about twice as fast as from a memory map."""


class Split:
    """The tokens of one split, over all its shards, as one sequence."""

    def __init__(self, folder: Path, meta: dict[str, Any], dtype: np.dtype[Any]) -> None:
        self.tokens = int(meta["tokens"])
        self.bytes = int(meta["bytes"])
        self._shards = [_open_shard(folder / shard["file"], int(shard["tokens"]), dtype) for shard in meta["shards"]]
        self._ends = np.array(list(accumulate(len(shard) for shard in self._shards)), dtype=np.int64)
        if not len(self._ends) or self._ends[-1] != self.tokens:
            raise DataError(
                f"dataset {folder}: meta.json says {self.tokens} tokens, but the shards hold another number"
            )
        self._whole: NDArray[Any] | None = None
        if self.tokens * dtype.itemsize <= _IN_MEMORY_BYTES:
            self._whole = np.concatenate(self._shards)

    def read(self, start: int, length: int) -> NDArray[np.int64]:
        """Token ids [start, start + length), which must lie inside the split."""
        window: NDArray[np.int64] = self._windows(np.array([start], dtype=np.int64), length)[0]
        return window

    def batch(self, seed: int, stream: int, step: int, sequences: slice, total: int, length: int) -> Tensor:
        """Rows `sequences` of the `total` sequences of a step, each `length` + 1 tokens: (rows, length + 1) int64.

        Philox is counter-based: any step is reached at once, and every process can draw its share of the same step.
        """
        generator = np.random.Generator(np.random.Philox(key=[seed, stream], counter=[0, 0, 0, step]))
        starts = generator.integers(0, self.tokens - length, size=total)[sequences]
        return torch.from_numpy(self._windows(starts, length + 1))

    def _windows(self, starts: NDArray[np.int64], length: int) -> NDArray[np.int64]:
        if self._whole is not None:
            gathered: NDArray[np.int64] = self._whole[starts[:, None] + np.arange(length)].astype(np.int64)
            return gathered
        rows = np.empty((len(starts), length), dtype=np.int64)
        for row, start in zip(rows, starts.tolist(), strict=True):
            filled = 0
            while filled < length:  # a window may lie across shards
                shard = int(np.searchsorted(self._ends, start + filled, side="right"))
                offset = start + filled - (int(self._ends[shard - 1]) if shard else 0)
                piece = self._shards[shard][offset : offset + length - filled]
                row[filled : filled + len(piece)] = piece
                filled += len(piece)
        return rows


class Dataset:
    """A tokenized corpus on the local disk. Raises DataError if the folder is not a whole dataset."""

    def __init__(self, folder: str | Path) -> None:
        self.folder = Path(folder)
        try:
            meta = json.loads((self.folder / "meta.json").read_text(encoding="utf-8"))
            self.digest = str(meta["digest"])
            self.vocab_size = int(meta["vocab_size"])
            dtype = np.dtype({"uint16": "<u2", "uint32": "<u4"}[meta["dtype"]])
            self.train = Split(self.folder, meta["splits"]["train"], dtype)
            self.val = Split(self.folder, meta["splits"]["val"], dtype)
        except OSError as error:
            raise DataError(f"dataset {self.folder} cannot be read: {error}; prepare it again") from None
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"dataset {self.folder}: meta.json is damaged ({error!r}); prepare it again") from None

    def split(self, name: SplitName) -> Split:
        """The split by its name."""
        return self.train if name == "train" else self.val

    def require_block_size(self, block_size: int) -> None:
        """Raise ConfigError unless a sequence with its targets fits into both splits."""
        for name, split in (("train", self.train), ("val", self.val)):
            if split.tokens <= block_size:
                raise ConfigError(
                    f"block_size = {block_size} is longer than the data: the {name} split has {split.tokens} tokens; "
                    f"use block_size = {max(split.tokens - 1, 0)} or less, or more text"
                )


def _open_shard(path: Path, tokens: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    size = path.stat().st_size
    if size != tokens * dtype.itemsize:
        raise DataError(f"{path} has {size} bytes instead of {tokens * dtype.itemsize}; prepare the dataset again")
    return np.memmap(path, dtype=dtype, mode="r") if size else np.empty(0, dtype=dtype)
