"""Reading long text in bounded memory, cut where cutting cannot change a token.

GPT-2's pre-tokenizer, and every one like it, begins a new word at whitespace that follows a non-space character. Cut
there and nowhere else, and the token ids do not depend on how large the pieces are. (Cutting *after* a newline, as
one would at first, splits runs of newlines and changes ids.)
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from crucible.errors import DataError

PIECE_BYTES = 1 << 20


@dataclass(frozen=True)
class Document:
    """One local file of text. `length` bytes of it are used; `stamp` tells whether it changed while it was read."""

    name: str
    path: Path
    length: int
    stamp: tuple[int, int]

    @classmethod
    def at(cls, path: Path, name: str) -> Document:
        """The whole file at `path`. Raises DataError when it cannot be looked at."""
        try:
            status = path.stat()
        except OSError as error:
            raise DataError(f"{path} cannot be read: {error.strerror}") from error
        return cls(name, path, status.st_size, (status.st_size, status.st_mtime_ns))

    def require_unchanged(self) -> None:
        """Raise DataError if the file is not the one that was there at the start."""
        if Document.at(self.path, self.name).stamp != self.stamp:
            raise DataError(f"{self.path} was changed while it was being preprocessed; run it again")


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `end` of a document; `separated`: a separator token goes before it."""

    document: Document
    start: int
    end: int
    separated: bool

    @property
    def length(self) -> int:
        return self.end - self.start


def read_blocks(document: Document, start: int, end: int, block_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """The bytes `start` to `end` of a document. Raises DataError when they cannot be read."""
    try:
        with document.path.open("rb") as file:
            file.seek(start)
            while start < end:
                block = file.read(min(block_bytes, end - start))
                if not block:
                    raise DataError(f"{document.path} became shorter while it was being read; run it again")
                start += len(block)
                yield block
    except OSError as error:
        raise DataError(f"{document.path} cannot be read: {error.strerror or error}") from error


def read_pieces(document: Document, start: int, end: int, piece_bytes: int = PIECE_BYTES) -> Iterator[str]:
    """The text of bytes `start` to `end` in pieces of about `piece_bytes`, cut where `last_cut` says.

    Line ends are kept as they are. Raises DataError naming file and byte offset when it is not UTF-8.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    pending, position = "", start
    for block in read_blocks(document, start, end, piece_bytes):
        position += len(block)
        try:
            text = pending + decoder.decode(block, final=position == end)
        except UnicodeDecodeError as error:
            offset = position - len(error.object) + error.start
            raise DataError(
                f"{document.path} is not UTF-8 text: byte {offset} is 0x{error.object[error.start]:02x} "
                f"({error.reason}); convert the file (for example with iconv -t UTF-8) or leave it out with "
                f"exclude = {document.name!r}"
            ) from error
        cut = len(text) if position == end else last_cut(text)
        if cut:
            yield text[:cut]
        pending = text[cut:]


def last_cut(text: str) -> int:
    """The last place where `text` can be cut: before a newline after a non-space character if there is one, else
    before any other whitespace after one. Text without either is cut at its end, to keep memory bounded."""
    cut = text.rfind("\n")
    while cut > 0 and text[cut - 1].isspace():
        cut = text.rfind("\n", 0, cut)
    if cut > 0:
        return cut
    for place in range(len(text) - 1, 0, -1):
        if text[place].isspace() and not text[place - 1].isspace():
            return place
    return len(text)


def find_cut(document: Document, near: int, end: int) -> int:
    """The first byte offset from `near` on where the document can be cut, `end` if there is none before it.

    Text that offers no place within `PIECE_BYTES` is cut at the first character from `near` on.
    """
    block = next(read_blocks(document, near, min(end, near + PIECE_BYTES)), b"")
    lead = 0
    while lead < min(3, len(block)) and block[lead] & 0xC0 == 0x80:  # inside a character
        lead += 1
    text = block[lead:].decode("utf-8", errors="ignore")
    cut = text.find("\n", 1)
    while cut > 0 and text[cut - 1].isspace():
        cut = text.find("\n", cut + 1)
    if cut < 0:
        spaces = (i for i in range(1, len(text)) if text[i].isspace() and not text[i - 1].isspace())
        cut = next(spaces, len(text) if near + len(block) >= end else 0)
    return near + lead + len(text[:cut].encode())


def byte_of_character(document: Document, index: int) -> int:
    """The byte offset at which character `index` (from 0) of a document begins; its length if there is none."""
    seen, position = 0, 0
    for block in read_blocks(document, 0, document.length):
        begins = (np.frombuffer(block, np.uint8) & 0xC0) != 0x80
        count = int(begins.sum())
        if seen + count > index:
            return position + int(np.flatnonzero(begins)[index - seen])
        seen += count
        position += len(block)
    return document.length


def character_counts(documents: list[Document]) -> Iterator[tuple[int, np.ndarray]]:
    """For each piece of each document: the document's index, and how often each code point occurs in the piece.

    Raises DataError when a document is not UTF-8.
    """
    for index, document in enumerate(documents):
        for piece in read_pieces(document, 0, document.length):
            yield index, np.bincount(code_points(piece))


def code_points(text: str) -> np.ndarray:
    """The text's Unicode code points, uint32."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.dtype("<u4"))
