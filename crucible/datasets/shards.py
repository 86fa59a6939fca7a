"""Divide text into shards, and write them piece by piece, so that memory does not grow with the text."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np

from crucible.datasets.disk import writing_to
from crucible.datasets.meta import ShardMeta
from crucible.datasets.text import Cut, Document, Span, byte_of_character, find_cut, read_pieces
from crucible.datasets.tokenizers import Tokenizer
from crucible.errors import DataError


@dataclass(frozen=True)
class ShardItem:
    """One piece of work: these spans of text become one file of token ids."""

    split: Literal["train", "val"]
    number: int
    spans: tuple[Span, ...]

    @property
    def name(self) -> str:
        return f"{self.split}-{self.number:05d}"

    @property
    def length(self) -> int:
        """Bytes of text."""
        return sum(span.length for span in self.spans)


def split_text(
    documents: list[Document], characters: list[int], val_fraction: float
) -> dict[Literal["train", "val"], list[Span]]:
    """Cut the text, exactly as nanoGPT does, before character int(n * (1 - val_fraction)) of its n.

    `characters[i]` is the length of document i. Raises DataError when one side would be empty.
    """
    total = sum(characters)
    left = int(total * (1 - val_fraction))
    if not 0 < left < total:
        raise DataError(f"the text has {total} characters, too few to split with val_fraction = {val_fraction}")
    splits: dict[Literal["train", "val"], list[Span]] = {"train": [], "val": []}
    for document, count in zip(documents, characters, strict=True):
        cut = document.length if left >= count else byte_of_character(document, left) if left else 0
        left = max(0, left - count)
        if cut:
            splits["train"].append(Span(document, 0, cut, separated=bool(splits["train"])))
        if cut < document.length:
            splits["val"].append(Span(document, cut, document.length, separated=bool(splits["val"])))
    return splits


def plan_shards(
    split: Literal["train", "val"], spans: list[Span], shard_bytes: int, cut: Cut = Cut.ANYWHERE
) -> list[ShardItem]:
    """Group a split's text into shards of about `shard_bytes`, cut only where tokens cannot change."""
    groups: list[list[Span]] = [[]]
    room = shard_bytes
    for span in spans:
        start, separated, continues = span.start, span.separated, span.continues
        while start < span.end:
            if room <= 0:
                groups.append([])
                room = shard_bytes
            end = span.end if span.end - start <= room else find_cut(span.document, start + room, span.end, cut)
            groups[-1].append(Span(span.document, start, end, separated, continues))
            room -= end - start
            start, separated, continues = end, False, True
    return [ShardItem(split, number, tuple(group)) for number, group in enumerate(groups)]


def write_shard(item: ShardItem, tokenizer: Tokenizer, path: Path, advanced: Callable[[int], None]) -> ShardMeta:
    """Tokenize the item into `path`; `advanced` is called with the bytes of text of each piece.

    The file name contains the content's hash: if two machines ever produce different shards, neither overwrites the
    other's.
    """
    digest, tokens = hashlib.sha256(), 0
    separator = np.array(tokenizer.separator, dtype=tokenizer.dtype)
    with writing_to(path.parent):
        file = path.open("wb")
    with file:

        def write(ids: np.ndarray) -> None:
            nonlocal tokens
            raw = ids.tobytes()
            with writing_to(path.parent):
                file.write(raw)
            digest.update(raw)
            tokens += len(ids)

        for span in item.spans:
            if span.separated:
                write(separator)
            continues = span.continues
            for piece in read_pieces(span.document, span.start, span.end, cut=tokenizer.cut):
                write(tokenizer.encode_next(piece) if continues else tokenizer.encode(piece))
                advanced(len(piece.encode()))
                continues = True
        with writing_to(path.parent):
            file.flush()
    sha256 = digest.hexdigest()
    return ShardMeta(file=f"{item.name}-{sha256[:8]}.bin", tokens=tokens, sha256=sha256)


def text_bytes(items: list[ShardItem], tokenizer: Tokenizer) -> int:
    """UTF-8 bytes of the items' text, separators included."""
    separators = sum(span.separated for item in items for span in item.spans)
    return sum(item.length for item in items) + separators * tokenizer.separator_bytes
