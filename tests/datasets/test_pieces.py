"""Tokenizers as they are published: long text read in pieces gives the ids of the whole, or they are refused."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from functools import cache
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from crucible.datasets.text import Cut
from crucible.datasets.tokenizers.bpe import BpeTokenizer
from crucible.errors import DataError
from tests.datasets.texts import make_text

TEXT = make_text(8_000)
BYTES = pre_tokenizers.ByteLevel.alphabet()
CL100K = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
O200K = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
    r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def trained(tokenizer: Tokenizer, trainer: Any = None, texts: Iterable[str] = (TEXT,)) -> Tokenizer:
    default = trainers.BpeTrainer(vocab_size=400, initial_alphabet=BYTES, show_progress=False)
    tokenizer.train_from_iterator(texts, trainer or default)
    return tokenizer


def byte_level(pattern: str | None = None, **options: Any) -> Tokenizer:
    """GPT-2's kind, split by its own pattern or another one."""
    tokenizer = Tokenizer(models.BPE())
    if pattern is None:
        tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=options.get("prefix", False))
    else:
        split = pre_tokenizers.Split(Regex(pattern), behavior="isolated")
        without = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
        tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, without])
    tokenizer.decoder = decoders.ByteLevel()
    return trained(tokenizer)


def llama() -> Tokenizer:
    """No pre-tokenizer: the normaliser writes spaces as ▁, and one in front of the text."""
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    # Word by word: published vocabularies hold no token of two words.
    return with_byte_tokens(trained(tokenizer, texts=TEXT.split()))


def with_byte_tokens(tokenizer: Tokenizer) -> Tokenizer:
    """Characters without a token become bytes, `<0x0A>` and so on."""
    content = json.loads(tokenizer.to_str())
    vocabulary = content["model"]["vocab"]
    vocabulary |= {f"<0x{byte:02X}>": len(vocabulary) + byte for byte in range(256)}
    return Tokenizer.from_str(json.dumps(content))


def gemma() -> Tokenizer:
    tokenizer = Tokenizer(models.BPE(byte_fallback=True, unk_token="<unk>", fuse_unk=True))
    tokenizer.normalizer = normalizers.Replace(" ", "▁")
    tokenizer.pre_tokenizer = pre_tokenizers.Split(" ", behavior="merged_with_previous")
    return with_byte_tokens(trained(tokenizer, texts=[f" {word}" for word in TEXT.split()]))


def sentencepiece(scheme: str) -> Tokenizer:
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    return trained(tokenizer, trainers.UnigramTrainer(vocab_size=300, unk_token="<unk>", show_progress=False))


def with_words() -> Tokenizer:
    """Tokens that are found in text before it is split, runs of spaces among them, as Phi and StarCoder have."""
    tokenizer = byte_level(CL100K)
    tokenizer.add_tokens(["  ", "    ", "<tab>", AddedToken("<fim>", lstrip=True)])
    return tokenizer


def joins_words() -> Tokenizer:
    tokenizer = byte_level()
    tokenizer.add_tokens(["New York", "it is"])
    return tokenizer


def joins_spaces() -> Tokenizer:
    return byte_level(r"\w+\s*|\W+")


def with_tokens_of_two_words() -> Tokenizer:
    """As SuperBPE's vocabularies, and those of texts that were not split before: no word of a probe shows it."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return trained(tokenizer, texts=["zebras of the zoo\n", "lions of the zoo\n"] * 50)


def with_a_late_token_that_takes_spaces() -> Tokenizer:
    """The probes have the first added tokens, and those that could matter."""
    tokenizer = byte_level()
    tokenizer.add_tokens([*(f"<unused{number}>" for number in range(30)), AddedToken("MASK", rstrip=True)])
    return tokenizer


MADE: dict[str, Callable[[], Tokenizer]] = {
    "gpt2": byte_level,
    "gpt2 with a space in front": lambda: byte_level(prefix=True),
    "cl100k": lambda: byte_level(CL100K),
    "o200k": lambda: byte_level(O200K),
    "llama": llama,
    "gemma": gemma,
    "sentencepiece, always": lambda: sentencepiece("always"),
    "sentencepiece, first": lambda: sentencepiece("first"),
    "sentencepiece, never": lambda: sentencepiece("never"),
    "words in text": with_words,
}


@cache
def tokenizer(name: str) -> BpeTokenizer:
    made = BpeTokenizer(MADE[name]().to_str())
    made.require_pieces(name)
    return made


@pytest.mark.parametrize(
    ("name", "cut", "lead"),
    [
        ("gpt2", Cut.SPACE, ""),
        ("gpt2 with a space in front", Cut.SPACE, "x"),
        ("cl100k", Cut.WORD, ""),
        ("o200k", Cut.WORD, ""),
        ("llama", Cut.SPACE, "x"),
        ("gemma", Cut.SPACE, ""),
        ("sentencepiece, always", Cut.BLANK, ""),
        ("sentencepiece, first", Cut.BLANK, ""),
        ("words in text", Cut.WORD, ""),
    ],
)
def test_where_a_tokenizer_can_be_cut_is_found_out(name: str, cut: Cut, lead: str) -> None:
    assert (tokenizer(name).cut, tokenizer(name)._lead) == (cut, lead)


texts = st.text(
    st.sampled_from("abThe'sll 12日é.,!?-_(){}🙂\n\t\u00a0\u3000") | st.sampled_from(list("   \n\n")), min_size=2
)


@pytest.mark.parametrize("name", MADE)
@settings(max_examples=40, deadline=None)
@given(text=texts, data=st.data())
def test_pieces_have_the_ids_of_the_whole_text(name: str, text: str, data: st.DataObject) -> None:
    made = tokenizer(name)
    places = [place for place in range(1, len(text)) if made.cut.at(text, place)]
    chosen = sorted(data.draw(st.sets(st.sampled_from(places)))) if places else []
    pieces = [text[a:b] for a, b in zip([0, *chosen], [*chosen, len(text)], strict=True)]
    ids = made.encode(pieces[0]).tolist()
    for piece in pieces[1:]:
        ids += made.encode_next(piece).tolist()
    assert ids == made.encode(text).tolist()


@pytest.mark.parametrize("name", ["gpt2", "llama", "gemma"])
def test_the_bytes_of_the_tokens_are_those_of_the_text(name: str) -> None:
    """Bits per byte of a folder of nanoGPT rest on it."""
    content = json.loads(tokenizer(name).to_json())
    if name != "gpt2":  # as published
        steps: list[dict[str, Any]] = [
            {"type": "Replace", "pattern": {"String": "▁"}, "content": " "},
            {"type": "ByteFallback"},
            {"type": "Fuse"},
        ]
        steps += [{"type": "Strip", "content": " ", "start": 1, "stop": 0}] if name == "llama" else []
        content["decoder"] = {"type": "Sequence", "decoders": steps}
    made = BpeTokenizer(json.dumps(content))
    text = "The cat's tail, naïve 日本語 and\n😀 it."
    marked = 1 if name == "llama" else 0
    assert made.byte_lengths()[made.encode(text)].sum() == len(text.encode()) + marked


@pytest.mark.parametrize(
    ("made", "reason"),
    [
        (joins_words, "added tokens join"),
        (joins_spaces, "pattern, its vocabulary"),
        (with_tokens_of_two_words, "its vocabulary"),
        (with_a_late_token_that_takes_spaces, "added tokens join"),
    ],
)
def test_a_tokenizer_that_cannot_be_cut_is_refused(made: Callable[[], Tokenizer], reason: str) -> None:
    with pytest.raises(DataError, match=f"own.json gives other ids .* before .*{reason}.* use another tokenizer.json"):
        BpeTokenizer(made().to_str()).require_pieces("own.json")


@pytest.mark.parametrize("limit", ["truncation", "padding", "dropout"])
def test_truncation_padding_and_dropout_are_switched_off(limit: str) -> None:
    made = byte_level()
    plain = BpeTokenizer(made.to_str())
    if limit == "truncation":
        made.enable_truncation(512)
    elif limit == "padding":
        made.enable_padding(length=1000)
    else:
        made.model.dropout = 0.5
    limited = BpeTokenizer(made.to_str())
    assert limited.encode(TEXT).tolist() == plain.encode(TEXT).tolist()
    assert limited.encode("short").tolist() == plain.encode("short").tolist()
    stored = BpeTokenizer(limited.to_json())
    assert stored.to_json() == limited.to_json()
    assert not any(word in limited.to_json() for word in ('"max_length"', '"pad_id"', '"dropout": 0.5'))
