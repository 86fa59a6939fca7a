"""One token per UTF-8 byte: no vocabulary to choose, any text can be encoded."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import ClassVar

import numpy as np
import numpy.typing as npt

from crucible.datasets.tokenizers.base import TokenIds, Tokenizer


class ByteTokenizer(Tokenizer):
    """Token id = byte value."""

    kind: ClassVar[str] = "byte"
    vocab_size = 256
    separator = (ord("\n"),)
    separator_bytes = 1

    def encode(self, text: str) -> TokenIds:
        return np.frombuffer(text.encode(errors="surrogatepass"), np.uint8).astype(self.dtype)

    def decode(self, ids: Sequence[int] | TokenIds) -> str:
        return np.asarray(ids).astype(np.uint8).tobytes().decode(errors="replace")

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        return np.ones(self.vocab_size, dtype=np.int64)

    def to_json(self) -> str:
        return json.dumps({"schema_version": 1, "kind": "byte"}) + "\n"
