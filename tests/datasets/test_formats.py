"""Files that are not plain UTF-8 text as they lie there: read as what they are, or refused all at once."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from crucible.datasets.build import build_dataset
from crucible.datasets.config import DatasetConfig
from crucible.datasets.fetch import fetch_dataset
from crucible.datasets.nanogpt import export_nanogpt
from crucible.errors import DataError
from crucible.store import Store
from tests.datasets.test_build import decoded
from tests.datasets.texts import make_text

PLAIN = make_text(5000).replace("\r", "")
RECORDS = [f"record {number}\r\nof two lines" for number in range(40)]
READ = "\n".join(f"record {number}\nof two lines" for number in range(40))


def text_of(config: DatasetConfig, store: Store, tmp_path: Path) -> str:
    folder = fetch_dataset(store, build_dataset(config, store).digest, tmp_path / "cache")
    return decoded(folder, "train") + decoded(folder, "val")


def write(path: Path, content: bytes) -> DatasetConfig:
    path.write_bytes(content)
    return DatasetConfig(source=str(path))


@pytest.mark.parametrize("newline", ["\r\n", "\r"])
@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"], ids=["", "BOM"])
def test_line_ends_and_byte_order_marks_give_nanogpts_vocabulary(
    newline: str, start: bytes, store: Store, tmp_path: Path
) -> None:
    path = tmp_path / "text.txt"
    info = build_dataset(write(path, start + PLAIN.replace("\n", newline).encode()), store)
    folder = fetch_dataset(store, info.digest, tmp_path / "cache")
    with path.open(encoding="utf-8-sig") as file:  # nanoGPT's prepare.py opens it like that, but for the mark
        text = file.read()
    assert text == PLAIN
    cut = int(len(text) * 0.9)
    assert (decoded(folder, "train"), decoded(folder, "val")) == (text[:cut], text[cut:])
    assert info.meta.vocab_size == len(set(text))
    assert info.meta.splits["val"].bytes == len(text[cut:].encode())
    plain = build_dataset(write(tmp_path / "plain.txt", PLAIN.encode()), store)
    export_nanogpt(folder, tmp_path / "a")
    export_nanogpt(fetch_dataset(store, plain.digest, tmp_path / "cache"), tmp_path / "b")
    for name in ("train.bin", "val.bin", "meta.pkl"):
        assert (tmp_path / "a" / name).read_bytes() == (tmp_path / "b" / name).read_bytes()
    assert build_dataset(DatasetConfig(source=str(path)), store).cached


def test_a_few_nul_characters_are_characters(store: Store, tmp_path: Path) -> None:
    text = PLAIN.replace("e", "\0", 20)
    assert text_of(write(tmp_path / "nul.txt", text.encode()), store, tmp_path) == text


def zstandard(content: bytes) -> bytes:
    return bytes(pytest.importorskip("zstandard").compress(content))


@pytest.mark.parametrize(
    ("name", "compress"),
    [
        ("a.txt.gz", gzip.compress),
        ("a.txt.bz2", bz2.compress),
        ("a.txt.xz", lzma.compress),
        ("a.txt.zst", zstandard),
        ("without a suffix", gzip.compress),
    ],
)
def test_compressed_text_is_read(name: str, compress: Callable[[bytes], bytes], store: Store, tmp_path: Path) -> None:
    config = write(tmp_path / name, compress(PLAIN.replace("\n", "\r\n").encode()))
    assert text_of(config, store, tmp_path) == PLAIN


@pytest.mark.parametrize("field", ["text", "body"])
def test_each_record_of_json_lines_is_a_document(field: str, store: Store, tmp_path: Path) -> None:
    lines = "\n".join(json.dumps({"id": 1, field: text}) for text in [*RECORDS, ""])
    config = write(tmp_path / "a.jsonl.gz", gzip.compress(lines.encode()))
    assert text_of(config.model_copy(update={"text_field": field}), store, tmp_path) == READ


def test_each_row_of_parquet_is_a_document(store: Store, tmp_path: Path) -> None:
    pyarrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    path = tmp_path / "a.parquet"
    parquet.write_table(pyarrow.table({"id": range(41), "body": [*RECORDS, None]}), path, row_group_size=7)
    assert text_of(DatasetConfig(source=str(path), text_field="body"), store, tmp_path) == READ
    with pytest.raises(DataError, match=r"no text in the column text_field = 'id'; it has id, body"):
        build_dataset(DatasetConfig(source=str(path), text_field="id"), store)
    with pytest.raises(DataError, match=r"no text in the column text_field = 'text'"):
        build_dataset(DatasetConfig(source=str(path)), store)


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.csv", b"a,b\n1,2\n", r"a\.csv is a table \(\.csv\); convert it to Parquet or JSON Lines"),
        ("a.zip", b"PK\x03\x04", r"is an archive \(\.zip\); unpack it and give the folder"),
        ("hidden zip.txt", b"PK\x03\x04", r"is an archive"),
        ("a.pdf", b"%PDF-1.7", r"is a document with layout .* pandoc"),
        ("utf-16.txt", "text".encode("utf-16"), r"is UTF-16 text; convert it, e\.g\. with iconv -f UTF-16"),
        ("utf-16 without a mark.txt", "text".encode("utf-16-le") * 99, r"is no text \(396 of 792 bytes are 0\)"),
        ("cut.txt.gz", gzip.compress(PLAIN.encode(), mtime=0)[:-20], r"cannot be read \(Compressed file ended"),
        ("latin-1.txt.gz", gzip.compress("été".encode("latin-1"), mtime=0), r"is not UTF-8 text: byte 0 is 0xe9"),
        ("a.jsonl", b'{"text": "a"}\n{"txt": "b"}\n', r"'text' in line 2; its fields are txt"),
        ("b.jsonl", b'{"text": "a"}\n["b"]\n', r"in line 2; it is no object"),
        ("c.jsonl", b'{"text": "a"}\n{"text":\n', r"holds no JSON in line 2"),
    ],
)
def test_what_cannot_be_read_is_named_for_what_it_is(
    name: str, content: bytes, message: str, store: Store, tmp_path: Path
) -> None:
    with pytest.raises(DataError, match=message):
        build_dataset(write(tmp_path / name, content), store)


def test_a_zstandard_file_that_was_cut_off_is_refused_and_one_of_several_frames_is_read(
    store: Store, tmp_path: Path
) -> None:
    half = len(PLAIN) // 2
    frames = zstandard(PLAIN[:half].encode()) + zstandard(b"") + zstandard(PLAIN[half:].encode())
    assert text_of(write(tmp_path / "frames.txt.zst", frames), store, tmp_path) == PLAIN
    several_blocks = zstandard("".join(map(chr, range(0x4E00, 0x4E00 + 20_000))).encode() * 5)
    for length in (len(several_blocks) - 20, len(several_blocks) // 2):
        with pytest.raises(DataError, match=r"cannot be read \(Compressed file ended"):
            build_dataset(write(tmp_path / "cut.txt.zst", several_blocks[:length]), store)


def test_all_files_that_cannot_be_used_are_one_message_with_an_exclude_that_works(store: Store, tmp_path: Path) -> None:
    """Whatever is wrong with them, and whatever their line ends are."""
    folder = tmp_path / "many"
    folder.mkdir()
    latin = ["Poe [1845].txt", *(f"book {number:03d}.txt" for number in range(14))]
    for number, name in enumerate([*latin, *(f"good {number:03d}.txt" for number in range(185))]):
        encoding, end = "latin-1" if name in latin else "utf-8", "\r\n" if number % 2 else "\n"
        (folder / name).write_bytes(f"{name}: été à Genève{end}".encode(encoding) * 5)
    (folder / "data.csv").write_text("a,b\n")
    (folder / "cut.txt.gz").write_bytes(gzip.compress(PLAIN.encode())[:-20])
    (folder / "other.jsonl").write_text('{"body": "text"}\n')
    (folder / os.fsdecode(b"caf\xe9 [2].pdf")).touch()
    with pytest.raises(DataError, match=r"^19 of 204 files cannot be used: ") as refused:
        build_dataset(DatasetConfig(source=str(folder)), store)
    assert all(f"{name} is not UTF-8 text: byte" in str(refused.value) for name in latin)
    assert str(refused.value).encode()
    exclude = json.loads(str(refused.value).split("exclude = ")[1])
    assert set(exclude) == {*latin, "data.csv", "cut.txt.gz", "other.jsonl", "caf? ?2?.pdf"}
    info = build_dataset(DatasetConfig(source=str(folder), exclude=tuple(exclude)), store)
    assert info.meta.splits["train"].tokens > 0
