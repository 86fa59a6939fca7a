"""What files hold, and how it becomes plain text: line ends, compression, JSON Lines, Parquet.

Text in UTF-8 with `\\n` at its line ends is used as it lies there. Everything else is written to the scratch folder as
such text first: line ends as Python's `open` reads them, without a byte-order mark, decompressed, and of JSON Lines and
Parquet the field that holds the text, each record a document of its own. What is none of these is refused, all files in
one message.
"""

from __future__ import annotations

import bz2
import codecs
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Callable, Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from itertools import chain
from pathlib import Path, PurePosixPath
from typing import IO, Any, cast

from crucible.datasets.disk import writing_to
from crucible.datasets.progress import Progress, ProgressCallback
from crucible.datasets.text import Document, NotUtf8, read_blocks
from crucible.errors import ConfigError, DataError

__all__ = ["FileKind", "Unreadable", "file_kind", "not_utf8", "plain_text", "refuse"]

try:
    from zstandard import ZstdError as _ZstdError
except ImportError:  # the data extra is not installed

    class _ZstdError(Exception):  # type: ignore[no-redef]
        pass


_BLOCK_BYTES = 1 << 20
_COMPRESSED_BLOCK_BYTES = 1 << 16
"""Small, since it may hold many times as much text."""
_LISTED = 100

_REFUSED = {
    (".csv", ".tsv"): ("a table", "convert it to Parquet or JSON Lines and name the column as text_field"),
    (".xls", ".xlsx", ".ods"): (
        "a spreadsheet",
        "convert it to Parquet or JSON Lines and name the column as text_field",
    ),
    (".arrow", ".feather", ".orc", ".avro"): ("a table", "convert it to Parquet and name the column as text_field"),
    (".zip", ".tar", ".tgz", ".7z", ".rar"): ("an archive", "unpack it and give the folder"),
    (".pdf", ".doc", ".docx", ".odt", ".epub"): (
        "a document with layout",
        "convert it to plain text, e.g. with pandoc",
    ),
    (".npy", ".npz", ".pt", ".pkl", ".h5", ".safetensors"): ("a file of arrays", "give the text it was made from"),
}
_COMPRESSED = (".gz", ".zst", ".bz2", ".xz")
_MAGIC = {
    b"\x1f\x8b": ".gz",
    b"\x28\xb5\x2f\xfd": ".zst",
    b"PAR1": ".parquet",
    b"PK\x03\x04": ".zip",
    b"%PDF": ".pdf",
    codecs.BOM_UTF16_LE: ".utf-16",
    codecs.BOM_UTF16_BE: ".utf-16",
}
_MOST_NULS = 1 / 8
_UNWRITABLE = re.compile("[\ud800-\udfff]")


@dataclass(frozen=True)
class FileKind:
    """How a file is read. Neither compressed, nor records, nor changed: as it lies there."""

    compression: str = ""
    records: str = ""
    """`.jsonl` or `.parquet`."""
    changed: bool = False
    """Whether it has other line ends than newlines, or a byte-order mark."""

    @property
    def as_it_is(self) -> bool:
        return not (self.compression or self.records or self.changed)


@dataclass(frozen=True)
class Unreadable:
    """A file that cannot be used, and why."""

    document: Document
    reason: str
    advice: str


def file_kind(document: Document) -> FileKind | Unreadable:
    """What the file is, by its name and its content."""
    suffixes = [suffix.lower() for suffix in PurePosixPath(document.name).suffixes]
    start = next(read_blocks(document, 0, min(document.length, 8)), b"")
    magic = next((suffix for known, suffix in _MAGIC.items() if start.startswith(known)), "")
    compression = suffixes.pop() if suffixes and suffixes[-1] in _COMPRESSED else ""
    if magic in _COMPRESSED and not compression:
        compression = magic
    last = suffixes[-1] if suffixes else ""
    if not compression and magic not in ("", ".utf-16"):
        last = magic
    for refused, (what, advice) in _REFUSED.items():
        if last in refused:
            return Unreadable(document, f"is {what} ({last})", advice)
    if last == ".parquet" and compression:
        return Unreadable(document, f"is a compressed Parquet file ({compression})", "decompress it")
    if last in (".jsonl", ".ndjson"):
        return FileKind(compression, ".jsonl")
    if last == ".parquet":
        return FileKind(records=".parquet")
    if compression:
        return FileKind(compression)
    if magic == ".utf-16":
        return Unreadable(document, "is UTF-16 text", "convert it, e.g. with iconv -f UTF-16 -t UTF-8")
    changed, nuls = start.startswith(codecs.BOM_UTF8), 0
    for block in read_blocks(document, 0, document.length, _BLOCK_BYTES):
        changed = changed or b"\r" in block
        nuls += block.count(0)
    if nuls > document.length * _MOST_NULS:
        return Unreadable(
            document, f"is no text ({nuls:,} of {document.length:,} bytes are 0)", "give it as UTF-8 text"
        )
    return FileKind(changed=changed)


def plain_text(
    documents: list[Document], kinds: list[FileKind], text_field: str, work: Path, progress: ProgressCallback
) -> tuple[list[Document], list[Unreadable]]:
    """The same text as documents of UTF-8 with newlines, and the files that cannot be read.

    Documents that are not that yet are written to `work`; whether the others are UTF-8 is not looked at.
    """
    if all(kind.as_it_is for kind in kinds):
        return documents, []
    folder = work / "text"
    total, done = sum(document.length for document in documents), 0
    found: list[Document] = []
    problems: list[Unreadable] = []
    for number, (document, kind) in enumerate(zip(documents, kinds, strict=True)):
        if kind.as_it_is:
            found.append(document)
        else:
            with writing_to(folder):
                folder.mkdir(exist_ok=True)
            try:
                found += _write(_texts(document, kind, text_field), folder / f"{number:08d}", document.name)
                document.require_unchanged()
            except NotUtf8 as error:
                problems.append(not_utf8(error))
            except _BadRecord as error:
                problems.append(Unreadable(document, str(error), "correct the file, or text_field"))
            except (EOFError, OSError, zlib.error, lzma.LZMAError, _ZstdError) as error:
                problems.append(Unreadable(document, f"cannot be read ({error})", "copy it here again"))
        done += document.length
        progress(Progress("convert", done, total))
    return found, problems


def not_utf8(error: NotUtf8) -> Unreadable:
    """The problem of a file with bytes that are no UTF-8."""
    return Unreadable(error.document, f"is not UTF-8 text: {error.problem}", "convert it, e.g. with iconv -t UTF-8")


def refuse(problems: list[Unreadable], files: int) -> None:
    """Raise one DataError for all files that cannot be used, if there are any."""
    if not problems:
        return
    first = problems[0]
    if files == 1:
        raise DataError(_legible(f"{first.document.path} {first.reason}; {first.advice}"))
    advice = "; ".join(dict.fromkeys(problem.advice for problem in problems))
    listed = "; ".join(f"{problem.document.name} {problem.reason}" for problem in problems[:_LISTED])
    more = f"; and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
    names = json.dumps([_as_pattern(problem.document.name) for problem in problems[:_LISTED]], ensure_ascii=False)
    raise DataError(
        _legible(
            f"{len(problems)} of {files} files cannot be used: {listed}{more}. To use them: {advice}. To leave them "
            f"out: exclude = {names}"
        )
    )


def _as_pattern(name: str) -> str:
    """The name, which matches itself; one whose bytes are no UTF-8 cannot be written, and becomes a pattern."""
    return re.sub(r"[\[\]]", "?", _UNWRITABLE.sub("?", name)) if _UNWRITABLE.search(name) else name


def _legible(text: str) -> str:
    """The text with U+FFFD for what cannot be written: bytes of file names that are no UTF-8, half characters."""
    return _UNWRITABLE.sub("\ufffd", text)


class _BadRecord(Exception):
    """What is wrong with a file of records."""


def _write(texts: Iterable[Iterable[str]], path: Path, name: str) -> list[Document]:
    """One document for each of the texts, one after the other in one file."""
    parts: list[tuple[int, int]] = []
    offset = 0
    with writing_to(path.parent):
        file = path.open("wb")
    with file:
        for text in texts:
            start = offset
            for piece in text:
                raw = piece.encode()
                with writing_to(path.parent):
                    file.write(raw)
                offset += len(raw)
            if offset > start:
                parts.append((start, offset - start))
        with writing_to(path.parent):
            file.flush()
    stamp = Document.at(path, name).stamp
    return [Document(name, path, length, stamp, start) for start, length in parts]


def _texts(document: Document, kind: FileKind, text_field: str) -> Iterator[Iterable[str]]:
    if kind.records == ".parquet":
        return ([_with_newlines(text)] for text in _parquet(document, text_field))
    if kind.records == ".jsonl":
        return ([_with_newlines(text)] for text in _json_lines(document, kind, text_field))
    return iter([_decoded(document, kind)])


def _decoded(document: Document, kind: FileKind) -> Iterator[str]:
    """The text with newlines only, and without a byte-order mark. Raises NotUtf8 with the offset in what it holds."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    newlines = io.IncrementalNewlineDecoder(None, translate=True)
    position, first = 0, True
    with closing(_blocks(document, kind)) as blocks:
        for block in chain(blocks, [b""]):
            position += len(block)
            try:
                text = decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise NotUtf8(document, position - len(error.object) + error.start, error) from error
            if first and text:
                text, first = text.removeprefix("\ufeff"), False
            yield newlines.decode(text, final=not block)


def _blocks(document: Document, kind: FileKind) -> Generator[bytes]:
    """What the file holds, decompressed; no block is empty. Raises EOFError where its end is missing."""
    if kind.compression == ".zst":
        yield from _zstandard_blocks(document.path)
        return
    openers: dict[str, Callable[[Path], Any]] = {
        "": lambda path: path.open("rb"),
        ".gz": gzip.open,
        ".bz2": bz2.open,
        ".xz": lzma.open,
    }
    with cast(IO[bytes], openers[kind.compression](document.path)) as file:
        while block := file.read(_BLOCK_BYTES):
            yield block


def _zstandard_blocks(path: Path) -> Iterator[bytes]:
    """Frame by frame: the library's own reader takes a file that was cut off for a shorter one."""
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError(_needs_extra(path.name, "zstandard")) from error
    frame = None
    with path.open("rb") as file:
        while raw := file.read(_COMPRESSED_BLOCK_BYTES):
            while raw:
                frame = frame or zstandard.ZstdDecompressor().decompressobj()
                if block := frame.decompress(raw):
                    yield block
                raw = b""
                if frame.eof:
                    raw, frame = frame.unused_data, None
    if frame is not None:
        raise EOFError("Compressed file ended before the end-of-stream marker was reached")


def _json_lines(document: Document, kind: FileKind, text_field: str) -> Iterator[str]:
    pending, number = "", 0
    for piece in _decoded(document, kind):
        *lines, pending = (pending + piece).split("\n")
        for line in lines:
            number += 1
            if line.strip():
                yield _text_of_record(line, number, text_field)
    if pending.strip():
        yield _text_of_record(pending, number + 1, text_field)


def _text_of_record(line: str, number: int, text_field: str) -> str:
    try:
        record = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise _BadRecord(f"holds no JSON in line {number} ({error})") from error
    if not isinstance(record, dict) or not isinstance(record.get(text_field), str):
        known = f"its fields are {', '.join(map(str, record))}" if isinstance(record, dict) else "it is no object"
        raise _BadRecord(f"has no text in the field text_field = {text_field!r} in line {number}; {known}")
    return str(record[text_field])


def _parquet(document: Document, text_field: str) -> Iterator[str]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise ConfigError(_needs_extra(document.name, "pyarrow")) from error
    try:
        with parquet.ParquetFile(document.path) as file:
            names = file.schema_arrow.names
            kinds = (pyarrow.types.is_string, pyarrow.types.is_large_string)
            if text_field not in names or not any(
                is_kind(file.schema_arrow.field(text_field).type) for is_kind in kinds
            ):
                raise _BadRecord(f"has no text in the column text_field = {text_field!r}; it has {', '.join(names)}")
            for batch in file.iter_batches(batch_size=1024, columns=[text_field]):
                yield from (text for text in batch.column(0).to_pylist() if text is not None)
    except pyarrow.ArrowInvalid as error:
        raise _BadRecord(f"is no Parquet file ({error})") from error


def _with_newlines(text: str) -> str:
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return text.encode("utf-16-le", "surrogatepass").decode("utf-16-le", "replace")  # JSON can spell half a character


def _needs_extra(name: str, package: str) -> str:
    return f"source: reading {name} needs {package}; install it with: pip install -c constraints.txt '.[data]'"
