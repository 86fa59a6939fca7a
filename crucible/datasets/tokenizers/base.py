"""The interface of every tokenizer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from crucible.datasets.text import Cut

TokenIds = npt.NDArray[np.unsignedinteger[Any]]


class Tokenizer(ABC):
    """Text to token ids and back. Ids are 0 … vocab_size - 1. Safe to use from several threads."""

    kind: ClassVar[str]
    vocab_size: int
    separator: tuple[int, ...]
    """The ids put between two documents: a newline, or the end-of-text token where there is one."""
    separator_bytes: int
    """How many bytes of text the separator stands for."""
    cut: Cut = Cut.ANYWHERE
    """Where long text can be cut into pieces whose ids are those of the whole."""

    @abstractmethod
    def encode(self, text: str) -> TokenIds:
        """The ids of `text`, one-dimensional, of type `dtype`. Never yields special tokens: text is only text."""

    def encode_next(self, text: str) -> TokenIds:
        """The ids of a piece that follows another one: what they are in the whole text."""
        return self.encode(text)

    @abstractmethod
    def decode(self, ids: Sequence[int] | TokenIds) -> str:
        """The text of `ids`; bytes that are not UTF-8 become U+FFFD."""

    @abstractmethod
    def byte_lengths(self) -> npt.NDArray[np.int64]:
        """How many bytes of UTF-8 text each token stands for, by id."""

    @abstractmethod
    def to_json(self) -> str:
        """All that `load_tokenizer` needs to make this tokenizer again."""

    @property
    def dtype(self) -> np.dtype[np.unsignedinteger[Any]]:
        """Little-endian uint16 if every id fits, else uint32."""
        return np.dtype("<u2") if self.vocab_size <= 1 << 16 else np.dtype("<u4")
