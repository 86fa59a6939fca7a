"""A folder that nanoGPT's prepare.py wrote, as a dataset: train.bin, val.bin and meta.pkl, which GPT-2's tokens lack.

The tokens are taken as they are: they are counted and checked, not made.
"""

from __future__ import annotations

import hashlib
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crucible.datasets.config import DatasetConfig
from crucible.datasets.disk import writing_to
from crucible.datasets.meta import SPLITS, ShardMeta
from crucible.datasets.shards import ShardItem
from crucible.datasets.text import Document
from crucible.datasets.tokenizers import Tokenizer, load_tokenizer
from crucible.datasets.tokenizers.bpe import gpt2_bpe
from crucible.datasets.tokenizers.byte import ByteTokenizer
from crucible.datasets.tokenizers.char import CharTokenizer
from crucible.errors import DataError
from crucible.home import local_path

TABLE = "meta.pkl"
TOKEN = np.dtype("<u2")
_LARGEST_TABLE_BYTES = 64 << 20
_BLOCK = 16 << 20
"""Tokens read at once."""


def is_nanogpt_folder(path: Path) -> bool:
    """Whether it holds both of nanoGPT's splits."""
    return all((path / f"{split}.bin").is_file() for split in SPLITS)


@dataclass(frozen=True)
class TokenItem(ShardItem):
    """Tokens `start` to `end` of a .bin file, which become one shard."""

    file: Path
    start: int
    end: int
    text_bytes: int

    @property
    def length(self) -> int:
        return self.text_bytes


def bin_files(folder: Path) -> list[Document]:
    """Both splits, in their order."""
    return [Document.at(folder / f"{split}.bin", f"{split}.bin") for split in SPLITS]


def tokenizer_of(folder: Path, config: DatasetConfig) -> Tokenizer:
    """What turns the folder's tokens into text: the characters of meta.pkl, GPT-2's, or the one that `config` names.

    Raises DataError when the two contradict each other, or neither says.
    """
    if config.max_bytes is not None or config.vocab_size is not None:
        raise DataError(f"source {folder} holds tokens that are made already; leave max_bytes and vocab_size empty")
    table = read_table(folder / TABLE) if (folder / TABLE).is_file() else None
    tokenizer = _tokenizer(folder, config, table)
    if table is not None and table.get("vocab_size") not in (None, tokenizer.vocab_size):
        raise DataError(
            f"{folder / TABLE} says vocab_size = {table['vocab_size']}, the tokenizer has {tokenizer.vocab_size}; "
            "give the tokenizer that made them"
        )
    return tokenizer


def _tokenizer(folder: Path, config: DatasetConfig, table: dict[str, Any] | None) -> Tokenizer:
    if config.tokenizer == "file":
        return load_tokenizer(local_path(str(config.tokenizer_file), "tokenizer_file"))
    if config.tokenizer == "byte" and (table is None or "itos" not in table):
        return ByteTokenizer()
    if table is None and config.tokenizer in ("char", "gpt2"):
        return gpt2_bpe()  # as in nanoGPT, where a folder without meta.pkl has GPT-2's tokens
    if table is not None and "itos" in table and config.tokenizer == "char":
        return CharTokenizer(_characters(table["itos"], folder / TABLE))
    if table is not None and "itos" not in table:
        raise DataError(
            f"{folder / TABLE} holds no characters; give the tokenizer that made the tokens: tokenizer = 'file' and "
            "tokenizer_file"
        )
    made = "GPT-2's tokens" if table is None else "characters as tokens"
    raise DataError(f"source {folder} has {made}, not tokenizer = {config.tokenizer!r}; leave tokenizer out")


def read_table(file: Path) -> dict[str, Any]:
    """The content of meta.pkl. Raises DataError for anything but plain values: nothing in it is executed."""
    if (size := file.stat().st_size) > _LARGEST_TABLE_BYTES:
        raise DataError(f"{file} has {size:,} bytes; a table of characters is far smaller")
    try:
        with file.open("rb") as stream:
            table = _PlainValues(stream).load()
    except Exception as error:  # noqa: BLE001 - a damaged pickle raises almost anything
        raise DataError(f"{file} cannot be read as plain values, and nothing else is loaded: {error}") from None
    if not isinstance(table, dict):
        raise DataError(f"{file} holds a {type(table).__name__}, not nanoGPT's table of characters")
    return table


class _PlainValues(pickle.Unpickler):
    """Reads numbers, text and containers. Whatever names a class or function is refused before it is looked up."""

    def find_class(self, module: str, name: str) -> Any:
        raise pickle.UnpicklingError(f"it names {module}.{name}")

    def persistent_load(self, pid: Any) -> Any:
        raise pickle.UnpicklingError("it refers to objects elsewhere")


def _characters(itos: Any, file: Path) -> str:
    try:
        characters = [itos[number] for number in range(len(itos))]
    except (KeyError, TypeError, IndexError):
        characters = []
    if not characters or not all(isinstance(c, str) and len(c) == 1 for c in characters):
        raise DataError(f"{file}: itos is no table of single characters numbered from 0")
    return "".join(characters)


def plan_tokens(folder: Path, tokenizer: Tokenizer, shard_bytes: int) -> list[TokenItem]:
    """Cut both splits into shards of about `shard_bytes` of tokens. Raises DataError for ids without a token."""
    lengths, room = tokenizer.byte_lengths(), max(1, shard_bytes // TOKEN.itemsize)
    items = []
    for split in SPLITS:
        file = folder / f"{split}.bin"
        tokens = open_tokens(file)
        for number, start in enumerate(range(0, len(tokens), room)):
            end = min(start + room, len(tokens))
            counts = _count(tokens[start:end], file, tokenizer.vocab_size)
            items.append(TokenItem(split, number, (), file, start, end, int(counts @ lengths[: len(counts)])))
    return items


def open_tokens(file: Path) -> np.ndarray:
    """The token ids of a .bin file. Raises DataError when it is empty or no whole number of them."""
    size = file.stat().st_size
    if not size or size % TOKEN.itemsize:
        raise DataError(f"{file} has {size} bytes, which are no token ids of 16 bits; write it again")
    return np.memmap(file, dtype=TOKEN, mode="r")


def _count(tokens: np.ndarray, file: Path, vocab_size: int) -> np.ndarray:
    counts = np.zeros(1 << 16, dtype=np.int64)
    for start in range(0, len(tokens), _BLOCK):
        counts += np.bincount(tokens[start : start + _BLOCK], minlength=1 << 16)
    largest = int(np.flatnonzero(counts)[-1])
    if largest >= vocab_size:
        raise DataError(
            f"{file} has the token {largest}, but the tokenizer only {vocab_size} tokens; give the tokenizer that "
            f"made the file: tokenizer = 'file' and tokenizer_file"
        )
    return counts[: largest + 1]


def copy_tokens(item: TokenItem, tokenizer: Tokenizer, path: Path, advanced: Callable[[int], None]) -> ShardMeta:
    """Write the item's tokens to `path`; `advanced` is called with the bytes of text that they stand for."""
    digest, tokens = hashlib.sha256(), open_tokens(item.file)
    with writing_to(path.parent), path.open("wb") as target:
        for start in range(item.start, item.end, _BLOCK):
            raw = tokens[start : min(start + _BLOCK, item.end)].astype(tokenizer.dtype).tobytes()
            digest.update(raw)
            target.write(raw)
    advanced(item.text_bytes)
    sha256 = digest.hexdigest()
    return ShardMeta(file=f"{item.name}-{sha256[:8]}.bin", tokens=item.end - item.start, sha256=sha256)
