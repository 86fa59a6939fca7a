"""The tokenizer of a dataset: which one its configuration asks for, and the text that merges are learned from."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from crucible.datasets.config import DEFAULT_BPE_TOKENS, DEFAULT_CHARACTERS, DatasetConfig
from crucible.datasets.progress import Progress, ProgressCallback
from crucible.datasets.text import Span, read_pieces
from crucible.datasets.tokenizers import Tokenizer
from crucible.datasets.tokenizers.bpe import BpeTokenizer, gpt2_bpe, train_bpe
from crucible.datasets.tokenizers.byte import ByteTokenizer
from crucible.datasets.tokenizers.char import CharTokenizer
from crucible.datasets.tokenizers.files import load_tokenizer
from crucible.home import local_path

BPE_SAMPLE_BYTES = 8 << 20
"""How much text byte-pair merges are learned from, spread evenly over the training split. More text hardly improves the
merges (a tenth of 80 MB: 3.37 instead of 3.49 bytes per token) and takes time and memory in proportion."""


def make_tokenizer(
    config: DatasetConfig, counts: np.ndarray, train: list[Span], documents: int, progress: ProgressCallback
) -> Tokenizer:
    """The tokenizer that the configuration asks for, learned from the training split where it is one that learns.

    `counts`: how often each code point occurs; `train`: the spans of the training split. Raises DataError.
    """
    if config.tokenizer == "char":
        separator = "\n" if documents > 1 else ""
        return CharTokenizer.from_counts(counts, config.vocab_size or DEFAULT_CHARACTERS, always=separator)
    if config.tokenizer == "byte":
        return ByteTokenizer()
    if config.tokenizer == "bpe":
        return train_bpe(_sample(train, progress), config.vocab_size or DEFAULT_BPE_TOKENS)
    if config.tokenizer == "gpt2":
        return gpt2_bpe()
    given = given_tokenizer(config)
    if isinstance(given, BpeTokenizer):
        given.require_pieces(str(config.tokenizer_file))
    return given


def given_tokenizer(config: DatasetConfig) -> Tokenizer:
    """The one in `tokenizer_file`. Raises DataError."""
    assert config.tokenizer_file is not None  # the config's own check
    return load_tokenizer(local_path(config.tokenizer_file, "tokenizer_file"))


def _sample(spans: list[Span], progress: ProgressCallback) -> Iterator[str]:
    """Text of the spans up to `BPE_SAMPLE_BYTES`, in pieces spread evenly over them."""
    total = sum(span.length for span in spans)
    share = min(1.0, BPE_SAMPLE_BYTES / total)
    due = taken = 0.0
    for span in spans:
        for piece in read_pieces(span.document, span.start, span.end, 1 << 16):
            due += len(piece) * share
            if taken < due:
                taken += len(piece)
                progress(Progress("learn merges", int(taken), int(total * share)))
                yield piece
