from __future__ import annotations

import json
import unicodedata
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from crucible.datasets.text import Document, read_pieces
from crucible.datasets.tokenizers import Tokenizer, load_tokenizer
from crucible.datasets.tokenizers.bpe import END_OF_TEXT, BpeTokenizer, from_ranks, train_bpe
from crucible.datasets.tokenizers.byte import ByteTokenizer
from crucible.datasets.tokenizers.char import CharTokenizer
from crucible.datasets.tokenizers.twin import tiktoken_twin
from crucible.errors import ConfigError, DataError
from tests.datasets.texts import make_text

TEXT = make_text(60_000)
WITHOUT_LONE_SURROGATES = st.text(st.characters(exclude_categories=["Cs"]))


def counts_of(text: str) -> np.ndarray:
    counts = np.zeros(0x110000, dtype=np.int64)
    for character in text:
        counts[ord(character)] += 1
    return counts


@pytest.fixture(scope="module")
def bpe() -> BpeTokenizer:
    return train_bpe([TEXT], 600)


@pytest.fixture(scope="module")
def without_tiktoken(bpe: BpeTokenizer) -> BpeTokenizer:
    """The same tokenizer as on a machine where tiktoken is not installed."""
    twin = BpeTokenizer(bpe.to_json())
    twin._fast = None
    return twin


@pytest.fixture(autouse=True)
def _use_tiktoken_for_short_texts_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("crucible.datasets.tokenizers.bpe._WORTH_A_TWIN", 0)


def test_char_ids_are_nanogpts() -> None:
    characters = sorted(set(TEXT))
    expected = [characters.index(character) for character in TEXT[:5000]]
    tokenizer = CharTokenizer.from_counts(counts_of(TEXT), 1024)
    ids = tokenizer.encode(TEXT[:5000])
    assert ids.tolist() == expected
    assert ids.dtype == np.uint16
    assert tokenizer.decode(ids) == TEXT[:5000]


def test_rare_characters_become_the_replacement_character() -> None:
    counts = counts_of("aaaabbbbcccdde")
    tokenizer = CharTokenizer.from_counts(counts, 4)
    assert tokenizer.characters == "abc\ufffd"
    assert tokenizer.missing(counts) == 3
    assert tokenizer.decode(tokenizer.encode("abcdez")) == "abc\ufffd\ufffd\ufffd"


def test_a_character_without_a_token_is_named() -> None:
    with pytest.raises(ConfigError, match=r"'é' \(U\+00E9\) is not in the tokenizer's 2 characters"):
        CharTokenizer("ab").encode("abé")


@settings(deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(WITHOUT_LONE_SURROGATES)
def test_bytes_hold_any_text(text: str) -> None:
    tokenizer = ByteTokenizer()
    assert tokenizer.decode(tokenizer.encode(text)) == text


@settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.text(
        st.sampled_from("abtheTHE'sdn 12日é🙂\n\r\t\u00a0\u2003.,=_\x00") | st.characters(exclude_categories=["Cs"])
    )
)
def test_bpe_round_trip_and_equal_ids_with_and_without_tiktoken(
    bpe: BpeTokenizer, without_tiktoken: BpeTokenizer, text: str
) -> None:
    assert bpe._fast is not None
    ids = bpe.encode(text)
    assert ids.tolist() == without_tiktoken.encode(text).tolist()
    assert bpe.decode(ids) == text


def test_bpe_ids_do_not_depend_on_the_piece_size(bpe: BpeTokenizer, tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    path.write_text(TEXT, encoding="utf-8", newline="")
    source = Document.at(path, "a.txt")
    for piece_bytes in (300, 5000):
        pieces = list(read_pieces(source, 0, source.length, piece_bytes))
        assert len(pieces) > 10
        assert np.concatenate([bpe.encode(piece) for piece in pieces]).tolist() == bpe.encode(TEXT).tolist()


def test_every_character_is_classed_alike_with_and_without_tiktoken(
    bpe: BpeTokenizer, without_tiktoken: BpeTokenizer
) -> None:
    """A letter, a digit, a space or none of them: each leaves its mark on how "a" and "1" around it are split."""
    assert bpe._fast is not None
    sure = [chr(point) for point in range(0x110000) if unicodedata.category(chr(point)) not in ("Cn", "Cs", "Co")]
    for start in range(0, len(sure), 1000):
        text = "".join(
            f"a{character}{character}1{character} !{character}\n" for character in sure[start : start + 1000]
        )
        ids = bpe._fast.encode(text)
        assert ids is not None
        assert ids.tolist() == without_tiktoken.encode(text).tolist(), hex(ord(sure[start]))
    assert bpe._fast.encode("private use: \ue000") is None


def test_a_table_that_tiktoken_would_merge_otherwise_is_left_to_the_library(bpe: BpeTokenizer) -> None:
    content = json.loads(bpe.to_json())
    merges = content["model"]["merges"]
    long = next(index for index, (left, right) in enumerate(merges) if len(left) == 2 and len(right) == 1)
    left, right = merges[long]
    other = [left[0], left[1] + right]
    content["model"]["merges"][long] = other
    assert tiktoken_twin({**content, "model": {**content["model"], "merges": merges[:-1]}}) is None
    assert tiktoken_twin(content) is None
    found_in_text = {"content": "foo bar", "special": False, "id": bpe.vocab_size}
    assert tiktoken_twin({**json.loads(bpe.to_json()), "added_tokens": [found_in_text]}) is None


def test_spaces_that_tiktoken_gives_up_on(bpe: BpeTokenizer, without_tiktoken: BpeTokenizer) -> None:
    text = " " * 1_000_000 + "x"
    assert bpe._fast is not None
    assert bpe._fast.encode(text) is None
    assert bpe.encode(text).tolist() == without_tiktoken.encode(text).tolist()


def test_text_cannot_spell_the_end_of_text_token(bpe: BpeTokenizer, without_tiktoken: BpeTokenizer) -> None:
    end = bpe.vocab_size - 1
    assert bpe.separator == (end,)
    for tokenizer in (bpe, without_tiktoken):
        assert end not in tokenizer.encode(f"a {END_OF_TEXT} b")
    assert bpe.decode([end]) == END_OF_TEXT


def test_training_merges_twice_gives_the_same(bpe: BpeTokenizer) -> None:
    assert train_bpe([TEXT], 600).to_json() == bpe.to_json()
    assert bpe.vocab_size == 600


def test_a_tiktoken_table_becomes_the_same_tokenizer(bpe: BpeTokenizer) -> None:
    """The way GPT-2's vocabulary comes in, taken with our own merges since GPT-2's need a network."""
    assert bpe._fast is not None
    encoding = bpe._fast._encoding
    table = {token: encoding.encode_single_token(token) for token in encoding.token_byte_values()}
    converted = from_ranks(table)
    assert converted.vocab_size == 600
    converted._fast = None
    assert converted.encode(TEXT).tolist() == bpe.encode(TEXT).tolist()


def test_a_table_with_a_hole_is_refused() -> None:
    single = {bytes([byte]): byte for byte in range(256)}
    with pytest.raises(DataError, match="token b'abc' of rank 256 is not made of two earlier ones"):
        from_ranks({**single, b"abc": 256})


@pytest.mark.parametrize("kind", ["char", "byte", "bpe"])
def test_saved_and_loaded(kind: str, bpe: BpeTokenizer, tmp_path: Path) -> None:
    made: dict[str, Tokenizer] = {
        "char": CharTokenizer("".join(sorted(set(TEXT)))),
        "byte": ByteTokenizer(),
        "bpe": bpe,
    }
    (tmp_path / "tokenizer.json").write_text(made[kind].to_json(), encoding="utf-8")
    loaded = load_tokenizer(tmp_path)
    assert loaded.kind == kind
    assert loaded.encode(TEXT).tolist() == made[kind].encode(TEXT).tolist()


def test_more_than_65536_tokens_need_32_bits() -> None:
    characters = "".join(map(chr, range(0x4E00, 0x4E00 + 1000)))
    assert CharTokenizer(characters).dtype == np.uint16
    many = "".join(chr(point) for point in range(0x20000, 0x20000 + 65_537))
    tokenizer = CharTokenizer(many)
    assert tokenizer.encode(many[-1]).tolist() == [65_536]


@pytest.mark.parametrize("content", ["", "[]", '{"kind": "char"}', json.dumps({"model": {"type": "nonsense"}})])
def test_a_file_that_is_no_tokenizer_is_refused(content: str, tmp_path: Path) -> None:
    (tmp_path / "tokenizer.json").write_text(content, encoding="utf-8")
    with pytest.raises(DataError, match=r"tokenizer .*tokenizer\.json"):
        load_tokenizer(tmp_path / "tokenizer.json")
