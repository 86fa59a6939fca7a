"""Whether, and where, long text can be cut into pieces whose ids are those of the whole text encoded at once.

Tokenizers from elsewhere split text by patterns of their own, change it before (normalisers), or take its start for
something special (a space in front of the first word). So both ways are compared, for every kind of character on
either side of a cut and for every token of the vocabulary that a cut could go through, and a tokenizer that cannot be
cut is refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import product
from typing import Any

from crucible.datasets.text import Cut
from crucible.datasets.tokenizers.twin import byte_of_character
from crucible.errors import DataError

__all__ = ["find_cut_rule"]

_IN_NO_VOCABULARY = "\U0010fffd"
"""Some tokenizers make one token of all such characters in a row."""
_BEFORE = (
    *("word", "they'll", "x", "3", "12345", "naïve", "日本語", "слово", "०"),
    *("end.", "(end)", "what?!", "a,", "{", '"said"', "--", "…", "。", "😀", "/", _IN_NO_VOCABULARY),
)
_SPACES = (" ", "  ", "    ", "\n", "\n\n", "\t", " \n", "\n    ", "\n\t", " \xa0")
_AFTER = (
    *("word", "Word", "12345", "'s", "é", "日本", "слово", _IN_NO_VOCABULARY),
    *(".", "!?", '"x"', "{}", "…", "😀", "/", ""),
)
_OPENING, _ENDING = "1 + 1 = 2. Once upon a time ", " and so on.\n\nThe end"
_LEADS = ("", "x")
"""Encoded in front of a piece that continues a text; "x" makes a tokenizer that marks the start mark that one."""

_ACROSS = re.compile(r"\S\s")
_TAKES_SPACES = ("lstrip", "rstrip", "single_word")
"""Of an added token: it takes the spaces around it along, or looks at what is around it."""

Encode = Callable[[list[str]], list[list[int]]]


def find_cut_rule(encode: Encode, content: dict[str, Any], name: str) -> tuple[Cut, str]:
    """Where this tokenizer can be cut, and what to encode in front of each piece but the first.

    `encode` gives the ids of several texts, `content` is the tokenizer.json. Raises DataError with an example if it
    cannot be cut anywhere.
    """
    # Tokens that are found in text before it is split; of very many, those that a cut could hit.
    added = [token for token in content.get("added_tokens", []) if not token.get("special")]
    words = [
        token["content"]
        for number, token in enumerate(added)
        if number < 16 or any(map(str.isspace, token["content"])) or any(map(token.get, _TAKES_SPACES))
    ]
    spanning = list(_tokens_across_spaces(content))
    example = ""
    for cut in (Cut.SPACE, Cut.WORD, Cut.BLANK):
        for lead in _LEADS:
            wrong = _difference(encode, cut, lead, words, spanning)
            if wrong is None:
                return cut, lead
            example = wrong
    raise DataError(
        f"tokenizer {name} gives other ids when a long text is read in pieces than for the whole ({example}): "
        f"{_suspect(content)}; use another tokenizer.json, or tokenizer = 'bpe' or 'gpt2'"
    )


def _tokens_across_spaces(content: dict[str, Any]) -> Iterator[str]:
    """The text of each token that goes on with whitespace after something else, such as "of the" or ".\\n"."""
    vocabulary = (content.get("model") or {}).get("vocab") or ()
    byte_of = byte_of_character()
    for entry in vocabulary:
        token = entry if isinstance(entry, str) else entry[0]
        text = token.replace("▁", " ")
        if all(character in byte_of for character in token):  # as ByteLevel spells it; plain text is spelled alike
            text = bytes(byte_of[character] for character in token).decode(errors="replace")
        if _ACROSS.search(text):
            # Written after a word where it begins with a space: at the start of a text it may be something else.
            yield f"x{text}" if text[0].isspace() else text


def _difference(encode: Encode, cut: Cut, lead: str, words: list[str], spanning: list[str]) -> str | None:
    """A cut that changes ids, or None."""
    around = (*product((*_BEFORE, *words), _SPACES, _AFTER), *product(_BEFORE, _SPACES, words))
    cases = [
        (_OPENING + left, space + right + _ENDING) for left, space, right in around if cut.at(left + space, len(left))
    ]
    for word in (*words, *spanning):
        cases += [(word[:place], word[place:]) for place in range(1, len(word)) if cut.at(word, place)]
    (lead_ids,) = encode([lead])
    for start in range(0, len(cases), 500):  # most of the unsuitable ones fail among the first
        some = cases[start : start + 500]
        lefts = encode([left for left, _ in some])
        pieces = encode([lead + piece for _, piece in some])
        wholes = encode([left + piece for left, piece in some])
        for (left, piece), left_ids, ids, whole in zip(some, lefts, pieces, wholes, strict=True):
            if ids[: len(lead_ids)] != lead_ids or left_ids + ids[len(lead_ids) :] != whole:
                return f"{left[-12:]!r} before {piece[:12]!r}"
    return None


def _suspect(content: dict[str, Any]) -> str:
    """What in a tokenizer.json most likely makes its start or its cuts special."""
    parts = _parts(content.get("normalizer")) + _parts(content.get("pre_tokenizer"))
    for part in parts:
        kind = part.get("type")
        if kind in ("Prepend", "Strip", "Metaspace", "Precompiled", "Replace") or part.get("add_prefix_space"):
            return f"its {kind} step changes or marks where a text begins or ends"
    if (content.get("model") or {}).get("type") == "Unigram":
        return "its Unigram model weighs a whole line at once"
    return "its pattern, its vocabulary or its added tokens join whitespace with what is before it"


def _parts(step: dict[str, Any] | None) -> list[dict[str, Any]]:
    if not step:
        return []
    inner = step.get("normalizers") or step.get("pretokenizers") or [step]
    return [part for entry in inner for part in ([entry] if entry is step else _parts(entry))]
