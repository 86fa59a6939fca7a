"""Reading long text in bounded memory, cut where cutting cannot change a token.

A tokenizer says where it can be cut (`Cut`). GPT-2's pre-tokenizer begins a new word at whitespace that follows a
non-space character. Cut there and nowhere else, and the token ids do not depend on how large the pieces are. (Cutting
*after* a newline, as one would at first, splits runs of newlines and changes ids.) Newer patterns, such as cl100k's,
keep a newline with the punctuation before it, and can be cut after a letter or digit only; SentencePiece's kind knows
no line ends at all, and is cut at spaces.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterator
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import numpy as np

from crucible.errors import DataError

PIECE_BYTES = 1 << 20
_LONGEST_PIECE_BYTES = 16 << 20


class Cut(Enum):
    """Where a tokenizer's text can be cut without changing its ids."""

    ANYWHERE = "anywhere"
    """Preferably as `SPACE`, but text that offers no such place is cut after any character."""
    SPACE = "before whitespace after a non-space character"
    WORD = "before whitespace after a letter or digit"
    BLANK = "before a space after a letter or digit"

    def at(self, text: str, place: int) -> bool:
        """Whether text can be cut before the character at `place`, which must not be the first."""
        if text[place] not in (" " if self is Cut.BLANK else _CUT_BEFORE):
            return False
        return text[place - 1].isalnum() if self in (Cut.WORD, Cut.BLANK) else not text[place - 1].isspace()


_CUT_BEFORE = " \t\n\r"


@dataclass(frozen=True, slots=True)
class Document:
    """A text in a local file: `length` bytes from `offset` on. `stamp` changes when the file does."""

    name: str
    path: Path
    length: int
    stamp: tuple[int, int]
    offset: int = 0

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


class NotUtf8(DataError):
    """A document holds bytes that are no UTF-8 text."""

    def __init__(self, document: Document, offset: int, error: UnicodeDecodeError) -> None:
        self.document = document
        self.problem = f"byte {offset} is 0x{error.object[error.start]:02x} ({error.reason})"
        super().__init__(
            f"{document.path} is not UTF-8 text: {self.problem}; convert the file (for example with iconv -t UTF-8) or "
            f"leave it out with exclude = {document.name!r}"
        )


@dataclass(frozen=True)
class Span:
    """Bytes `start` to `end` of a document.

    `separated`: a separator token goes before it; `continues`: the text before it is in another shard.
    """

    document: Document
    start: int
    end: int
    separated: bool
    continues: bool = False

    @property
    def length(self) -> int:
        return self.end - self.start


def read_blocks(document: Document, start: int, end: int, block_bytes: int = PIECE_BYTES) -> Iterator[bytes]:
    """The bytes `start` to `end` of a document. Raises DataError when they cannot be read."""
    try:
        with document.path.open("rb") as file:
            file.seek(document.offset + start)
            while start < end:
                block = file.read(min(block_bytes, end - start))
                if not block:
                    raise DataError(f"{document.path} became shorter while it was being read; run it again")
                start += len(block)
                yield block
    except OSError as error:
        raise DataError(f"{document.path} cannot be read: {error.strerror or error}") from error


def read_pieces(
    document: Document, start: int, end: int, piece_bytes: int = PIECE_BYTES, cut: Cut = Cut.ANYWHERE
) -> Iterator[str]:
    """The text of bytes `start` to `end` in pieces of about `piece_bytes`, cut where `cut` allows.

    Raises DataError naming file and byte offset when it is not UTF-8, or when 16 MB of it cannot be cut.
    """
    decoder = codecs.getincrementaldecoder("utf-8")()
    pending, position = "", start
    for block in read_blocks(document, start, end, piece_bytes):
        position += len(block)
        try:
            text = pending + decoder.decode(block, final=position == end)
        except UnicodeDecodeError as error:
            raise NotUtf8(document, position - len(error.object) + error.start, error) from error
        place = len(text) if position == end else last_cut(text, cut)
        if place:
            yield text[:place]
        pending = text[place:]
        if len(pending) > max(_LONGEST_PIECE_BYTES, 2 * piece_bytes):
            raise _uncuttable(document, cut)


def last_cut(text: str, cut: Cut) -> int:
    """The last place where `text` can be cut, at a newline if there is one; 0 if there is none."""
    place = text.rfind("\n")
    while place > 0 and not cut.at(text, place):
        place = text.rfind("\n", 0, place)
    if place <= 0:
        place = next((place for place in range(len(text) - 1, 0, -1) if cut.at(text, place)), 0)
    return len(text) if place == 0 and cut is Cut.ANYWHERE else place


def find_cut(document: Document, near: int, end: int, cut: Cut = Cut.ANYWHERE) -> int:
    """The first byte offset from `near` on where the document can be cut, `end` if there is none before it.

    With `Cut.ANYWHERE`, text that offers no better place within `PIECE_BYTES` is cut at the first character from
    `near` on; otherwise raises DataError when there is none within 16 MB.
    """
    for size in (PIECE_BYTES, _LONGEST_PIECE_BYTES):
        block = b"".join(read_blocks(document, near, min(end, near + size)))
        lead = 0
        while lead < min(3, len(block)) and block[lead] & 0xC0 == 0x80:  # inside a character
            lead += 1
        text = block[lead:].decode("utf-8", errors="ignore")
        place = text.find("\n", 1)
        while place > 0 and not cut.at(text, place):
            place = text.find("\n", place + 1)
        if place < 0:
            place = next((place for place in range(1, len(text)) if cut.at(text, place)), 0)
        if place == 0 and near + len(block) >= end:
            place = len(text)
        if place > 0 or cut is Cut.ANYWHERE:
            return near + lead + len(text[:place].encode())
    raise _uncuttable(document, cut)


def _uncuttable(document: Document, cut: Cut) -> DataError:
    return DataError(
        f"{document.path} has 16 MB of text that cannot be cut, which this tokenizer needs {cut.value}; break it into "
        f"lines, or use tokenizer = 'byte' or 'char'"
    )


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


def code_points(text: str) -> np.ndarray:
    """The text's Unicode code points, uint32."""
    return np.frombuffer(text.encode("utf-32-le", errors="surrogatepass"), np.dtype("<u4"))
