"""meta.json, which describes a dataset. It is written last: without it, a folder or prefix is no dataset.

A dataset is `meta.json`, the tokenizer, and shards of raw little-endian token ids without header.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, ValidationError

from crucible.errors import ConfigError, DataError
from crucible.settings import explain_validation_error

META_FILE = "meta.json"
SPLITS: tuple[Literal["train", "val"], ...] = ("train", "val")


class _Record(BaseModel):
    model_config = ConfigDict(frozen=True, extra="ignore")  # a later version may add fields


class ShardMeta(_Record):
    """One file of token ids."""

    file: str
    tokens: int
    sha256: str


class SplitMeta(_Record):
    """`bytes`: UTF-8 bytes of the split's text, for bits per byte."""

    tokens: int
    bytes: int
    shards: tuple[ShardMeta, ...]


class TokenizerMeta(_Record):
    """`replaced_characters`: how many of the text's characters had no token of their own and became U+FFFD."""

    kind: str
    file: str
    sha256: str
    replaced_characters: int = 0


class DatasetMeta(_Record):
    """The content of meta.json."""

    schema_version: Literal[1] = 1
    digest: str
    source: dict[str, Any]
    tokenizer: TokenizerMeta
    vocab_size: int
    dtype: Literal["uint16", "uint32"]
    splits: dict[Literal["train", "val"], SplitMeta]

    @classmethod
    def parse(cls, data: Any, where: str) -> DatasetMeta:
        """Raises DataError, naming `where`, when `data` is not a dataset's meta.json."""
        try:
            return cls.model_validate(data)
        except ValidationError as error:
            raise DataError(
                f"{where} does not describe a dataset this version can read: {explain_validation_error(error)}"
            ) from error

    @property
    def tokens(self) -> int:
        """Tokens of both splits."""
        return sum(split.tokens for split in self.splits.values())

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of both splits."""
        return sum(split.bytes for split in self.splits.values())

    @property
    def token_bytes(self) -> int:
        """Bytes per token id in a shard."""
        return 2 if self.dtype == "uint16" else 4

    def source_name(self) -> str:
        """The source in a few words."""
        return str(self.source.get("path") or self.source.get("url") or self.source.get("uri") or self.source["kind"])


def load_meta(path: str | Path) -> DatasetMeta:
    """The meta.json of a local dataset folder (or the file itself). Raises DataError if it is none."""
    try:
        file = Path(path) / META_FILE if Path(path).is_dir() else Path(path)
        data = json.loads(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise DataError(f"{path} is not a finished dataset: {META_FILE}: {error.strerror or error}") from error
    except ValueError as error:
        raise DataError(f"{file} is not JSON: {error}") from error
    return DatasetMeta.parse(data, str(file))


def require_block_size(meta: DatasetMeta, block_size: int) -> None:
    """Raise ConfigError unless both splits hold at least one sequence of `block_size` tokens and its targets."""
    for name in SPLITS:
        tokens = meta.splits[name].tokens
        if tokens < block_size + 1:
            raise ConfigError(
                f"block_size = {block_size} is longer than the data: the {name} split has {tokens} tokens and a "
                f"sequence with its targets needs {block_size + 1}; lower block_size to at most {max(tokens - 1, 0)} "
                f"or use more text" + (" or a larger val_fraction" if name == "val" else "")
            )
