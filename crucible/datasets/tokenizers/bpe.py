"""Byte-level byte-pair encoding, as GPT-2 uses it: trained here, GPT-2's own, or read from a tokenizer.json.

Every one of them is kept as a tokenizer.json of the `tokenizers` library, which `transformers` reads too. Encoding
goes through tiktoken where it is installed and yields the same ids (`twin`), since it is 4 to 7 times as fast.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Sequence
from functools import cached_property
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from crucible.datasets.text import Cut
from crucible.datasets.tokenizers.base import TokenIds, Tokenizer
from crucible.datasets.tokenizers.pieces import find_cut_rule
from crucible.datasets.tokenizers.twin import TiktokenTwin, byte_of_character, last_merge, tiktoken_twin
from crucible.errors import DataError

END_OF_TEXT = "<|endoftext|>"

_BYTE = re.compile(r"<0x[0-9A-F]{2}>")
"""How vocabularies with a fallback to bytes write one."""
_WORTH_A_TWIN = 1 << 12
"""Characters from which on checking and using tiktoken pays."""


class BpeTokenizer(Tokenizer):
    """The tokenizer of a tokenizer.json given as text. Raises DataError when the library cannot read it.

    What would make ids depend on more than the text is switched off: truncation, padding, dropout.
    """

    kind: ClassVar[str] = "bpe"
    cut = Cut.SPACE

    def __init__(self, content: str, name: str = "tokenizer.json") -> None:
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        self._content = _without_limits(content)
        try:
            self._slow: Any = HuggingFaceTokenizer.from_str(self._content)
        except Exception as error:
            raise DataError(f"tokenizer {name} cannot be read by the tokenizers library: {error}") from error
        # A corpus that spells out "<|endoftext|>" must not be able to end a document.
        self._slow.encode_special_tokens = True
        ids = self._slow.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        self.separator = (ids[END_OF_TEXT],) if END_OF_TEXT in ids else ()
        self.separator_bytes = 0
        self._lead = ""
        """Encoded in front of a piece that follows another one, so that this piece is not marked as a start."""

    @cached_property
    def _fast(self) -> TiktokenTwin | None:
        return tiktoken_twin(json.loads(self._content))

    def encode(self, text: str) -> TokenIds:
        if len(text) >= _WORTH_A_TWIN and self._fast is not None:
            ids = self._fast.encode(text)
            if ids is not None:
                return ids.astype(self.dtype)
        return np.array(self._ids(text), dtype=self.dtype)

    def encode_next(self, text: str) -> TokenIds:
        if not self._lead:
            return self.encode(text)
        return np.array(self._ids(self._lead + text)[len(self._ids(self._lead)) :], dtype=self.dtype)

    def decode(self, ids: Sequence[int] | TokenIds) -> str:
        return str(self._slow.decode([int(i) for i in ids], skip_special_tokens=False))

    def byte_lengths(self) -> npt.NDArray[np.int64]:
        content = json.loads(self._content)
        added = {token["id"]: token for token in content.get("added_tokens") or ()}
        byte_level = "ByteLevel" in json.dumps(content.get("decoder"))  # its alphabet has a character for each byte

        def length(number: int) -> int:
            token = self._slow.id_to_token(number)
            if token is None or added.get(number, {}).get("special"):
                return 0
            if number in added:
                return len(token.encode())
            if byte_level:
                return len(token)
            if _BYTE.fullmatch(token):
                return 1
            # After another one: the space in front of a text's first word may be left out.
            return len(self._slow.decode([number, number]).encode()) - len(self._slow.decode([number]).encode())

        return np.array([length(number) for number in range(self.vocab_size)])

    def to_json(self) -> str:
        return self._content

    def require_pieces(self, name: str) -> None:
        """Find out where text can be cut without changing its ids. Raises DataError if it cannot be cut anywhere."""
        self.cut, self._lead = find_cut_rule(self._ids_of_each, json.loads(self._content), name)

    def _ids(self, text: str) -> list[int]:
        return self._ids_of_each([text])[0]

    def _ids_of_each(self, texts: list[str]) -> list[list[int]]:
        encoded = self._slow.encode_batch_fast(texts, add_special_tokens=False)  # without offsets: half the time
        return [encoding.ids for encoding in encoded]


def _without_limits(content: str) -> str:
    """The tokenizer.json without truncation, padding and dropout; otherwise as it was written."""
    try:
        parsed = json.loads(content)
        model = parsed["model"]
        if not any((parsed.get("truncation"), parsed.get("padding"), model.get("dropout"))):
            return content
    except (ValueError, KeyError, TypeError, AttributeError):
        return content  # whoever reads it reports what is wrong
    parsed |= {"truncation": None, "padding": None}
    if model.get("dropout"):
        model["dropout"] = None
    return json.dumps(parsed, ensure_ascii=False, indent=2)


def train_bpe(texts: Iterable[str], vocab_size: int) -> BpeTokenizer:
    """Learn merges from `texts`. The end-of-text token comes last, as in GPT-2; ids below it are merge ranks.

    A text too small for `vocab_size` tokens gives fewer.
    """
    from tokenizers import AddedToken, decoders, models, pre_tokenizers, trainers
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    tokenizer = HuggingFaceTokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size - 1, initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return BpeTokenizer(tokenizer.to_str())


def gpt2_bpe() -> BpeTokenizer:
    """GPT-2's own 50,257 tokens, its merges taken from tiktoken, which downloads them once and keeps them.

    Raises DataError when tiktoken is missing or cannot get them.
    """
    try:
        import tiktoken
    except ImportError as error:
        raise DataError(
            "tokenizer = 'gpt2' needs tiktoken; install it with: pip install -c constraints.txt tiktoken"
        ) from error
    try:
        gpt2 = tiktoken.get_encoding("gpt2")
        ranks = {token: gpt2.encode_single_token(token) for token in gpt2.token_byte_values()}
    except Exception as error:
        raise DataError(
            f"tokenizer = 'gpt2': tiktoken could not get GPT-2's vocabulary ({type(error).__name__}); connect to "
            f"the network once, set TIKTOKEN_CACHE_DIR to a folder that has it, or give the path of a "
            f"tokenizer.json instead"
        ) from error
    return from_ranks(ranks)


def from_ranks(ranks: dict[bytes, int]) -> BpeTokenizer:
    """A tokenizer from tiktoken's table of token bytes and merge ranks; the end-of-text token comes last."""
    from tokenizers import AddedToken, decoders, models, pre_tokenizers
    from tokenizers import Tokenizer as HuggingFaceTokenizer

    spell = {byte: character for character, byte in byte_of_character().items()}
    written = {token: "".join(spell[byte] for byte in token) for token in ranks}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            left, right = last_merge(token, rank, ranks)
            merges.append((written[left], written[right]))
    vocabulary = {written[token]: rank for token, rank in ranks.items()}
    tokenizer = HuggingFaceTokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return BpeTokenizer(tokenizer.to_str())
