from __future__ import annotations

import random
from itertools import pairwise
from pathlib import Path

import pytest

from crucible.datasets.shards import plan_shards, split_text
from crucible.datasets.text import Document, Span, byte_of_character, find_cut, read_pieces
from crucible.errors import DataError
from tests.datasets.texts import make_text


def document(path: Path, content: str | bytes) -> Document:
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return Document.at(path, path.name)


@pytest.mark.parametrize("piece_bytes", [5, 64, 1000, 1 << 20])
def test_pieces_add_up_to_the_text_whatever_their_size(tmp_path: Path, piece_bytes: int) -> None:
    text = make_text(5000)
    source = document(tmp_path / "a.txt", text)
    assert "".join(read_pieces(source, 0, source.length, piece_bytes)) == text


def test_pieces_begin_only_at_whitespace_after_a_character(tmp_path: Path) -> None:
    source = document(tmp_path / "a.txt", make_text(20_000))
    pieces = list(read_pieces(source, 0, source.length, 500))
    assert len(pieces) > 20
    for before, after in pairwise(pieces):
        assert after[0].isspace()
        assert not before[-1].isspace()


def test_text_without_whitespace_does_not_pile_up(tmp_path: Path) -> None:
    source = document(tmp_path / "a.txt", "x" * 100_000)
    assert max(map(len, read_pieces(source, 0, source.length, 1000))) <= 2000


@pytest.mark.parametrize(
    ("content", "offset"),
    [(b"fine \xff not", 5), ("é".encode() * 700 + b"\x80", 1400), (b"a" * 1000 + "日".encode()[:2], 1000)],
)
def test_text_that_is_not_utf8_is_refused_with_file_and_byte(tmp_path: Path, content: bytes, offset: int) -> None:
    source = document(tmp_path / "bad.txt", content)
    with pytest.raises(DataError, match=rf"bad\.txt is not UTF-8 text: byte {offset} is 0x.*exclude"):
        list(read_pieces(source, 0, source.length, 64))


def test_byte_of_character_agrees_with_python(tmp_path: Path) -> None:
    text = make_text(3000)
    source = document(tmp_path / "a.txt", text)
    for index in [0, 1, 17, len(text) // 2, len(text) - 1, len(text)]:
        assert byte_of_character(source, index) == len(text[:index].encode())


def test_split_is_nanogpts(tmp_path: Path) -> None:
    text = make_text(4567)
    source = document(tmp_path / "a.txt", text)
    splits = split_text([source], [len(text)], 0.1)
    (train,), (val,) = splits["train"], splits["val"]
    expected = text[: int(len(text) * 0.9)]
    assert "".join(read_pieces(source, train.start, train.end)) == expected
    assert "".join(read_pieces(source, val.start, val.end)) == text[len(expected) :]


def test_shards_cover_the_text_once_and_in_order(tmp_path: Path) -> None:
    draw = random.Random(3)
    documents = [document(tmp_path / f"{i}.txt", make_text(draw.randint(1, 4000), i)) for i in range(12)]
    spans = [Span(doc, 0, doc.length, separated=i > 0) for i, doc in enumerate(documents)]
    items = plan_shards("train", spans, 2048)
    assert len(items) > 5
    joined = b"".join(span.document.path.read_bytes()[span.start : span.end] for item in items for span in item.spans)
    assert joined == b"".join(doc.path.read_bytes() for doc in documents)
    assert sum(span.separated for item in items for span in item.spans) == len(documents) - 1
    assert all(item.length < 2048 + 500 for item in items)


def test_a_cut_never_splits_a_character(tmp_path: Path) -> None:
    source = document(tmp_path / "a.txt", "日" * 1000)
    for near in range(1, 40):
        assert find_cut(source, near, source.length) % 3 == 0
