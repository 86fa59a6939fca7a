"""Byte-level byte-pair encoding, as GPT-2 uses it: trained here, GPT-2's own, or read from a tokenizer.json.

Every one of them is kept as a tokenizer.json of the `tokenizers` library, which `transformers` reads too. Encoding
goes through tiktoken where it is installed and yields the same ids, since it is 4 to 7 times as fast.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Iterable, Sequence
from contextlib import suppress
from itertools import pairwise
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from crucible.datasets.tokenizers.base import TokenIds, Tokenizer
from crucible.errors import DataError

if TYPE_CHECKING:
    import tiktoken

END_OF_TEXT = "<|endoftext|>"
# GPT-2's pattern (openai/gpt-2, src/encoder.py), with the possessive quantifiers tiktoken gives it.
GPT2_PATTERN = r"""'(?:[sdmt]|ll|ve|re)| ?\p{L}++| ?\p{N}++| ?[^\s\p{L}\p{N}]++|\s++$|\s+(?!\S)|\s"""

_PROBE = (
    "def f(x):\n    return 'it''s', x**2  # 1234 naïve – 日本語 \U0001f600\n\n\n\t\tif x:  y = \"we'll\"\r\n"
    "The quick  brown fox;   jumps\xa0over 3.14159\u2003lazy dogs' o'clock <|endoftext|>\x00\n \n  "
)

log = logging.getLogger(__name__)


class BpeTokenizer(Tokenizer):
    """The tokenizer of a tokenizer.json given as text. Raises DataError when the library cannot read it."""

    kind: ClassVar[str] = "bpe"

    def __init__(self, content: str, name: str = "tokenizer.json") -> None:
        from tokenizers import Tokenizer as HuggingFaceTokenizer

        try:
            self._slow: Any = HuggingFaceTokenizer.from_str(content)
        except Exception as error:
            raise DataError(f"tokenizer {name} cannot be read by the tokenizers library: {error}") from error
        # A corpus that spells out "<|endoftext|>" must not be able to end a document.
        self._slow.encode_special_tokens = True
        self._content = content
        ids = self._slow.get_vocab(with_added_tokens=True)
        self.vocab_size = max(ids.values()) + 1
        self.separator = (ids[END_OF_TEXT],) if END_OF_TEXT in ids else ()
        self.separator_bytes = 0
        self._fast = _tiktoken_twin(json.loads(content), self._slow)

    def encode(self, text: str) -> TokenIds:
        if self._fast is not None:
            with suppress(ValueError):  # its regex engine gives up on a million spaces in a row
                return self._fast.encode_to_numpy(text, disallowed_special=()).astype(self.dtype)
        return np.array(self._slow.encode(text, add_special_tokens=False).ids, dtype=self.dtype)

    def decode(self, ids: Sequence[int] | TokenIds) -> str:
        return str(self._slow.decode([int(i) for i in ids], skip_special_tokens=False))

    def to_json(self) -> str:
        return self._content


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
        ranks: dict[bytes, int] = tiktoken.get_encoding("gpt2")._mergeable_ranks
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

    spell = {byte: character for character, byte in _byte_of_character().items()}
    written = {token: "".join(spell[byte] for byte in token) for token in ranks}
    merges = []
    for token, rank in sorted(ranks.items(), key=lambda item: item[1]):
        if len(token) > 1:
            left, right = _last_merge(token, rank, ranks)
            merges.append((written[left], written[right]))
    vocabulary = {written[token]: rank for token, rank in ranks.items()}
    tokenizer = HuggingFaceTokenizer(models.BPE(vocab=vocabulary, merges=merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(END_OF_TEXT, special=True)])
    return BpeTokenizer(tokenizer.to_str())


def _last_merge(token: bytes, rank: int, ranks: dict[bytes, int]) -> tuple[bytes, bytes]:
    """The two parts whose merge makes `token`: what encoding it with only the earlier merges leaves."""
    parts = [token[i : i + 1] for i in range(len(token))]
    while len(parts) > 2:
        options = [(ranks.get(a + b, rank), i) for i, (a, b) in enumerate(pairwise(parts))]
        lowest, i = min(options)
        if lowest >= rank:
            break
        parts[i : i + 2] = [parts[i] + parts[i + 1]]
    if len(parts) != 2:
        raise DataError(f"merge ranks are inconsistent: token {token!r} of rank {rank} is not made of two earlier ones")
    return parts[0], parts[1]


def _tiktoken_twin(content: dict[str, Any], slow: Any) -> tiktoken.Encoding | None:
    """The same tokenizer in tiktoken, or None where tiktoken is missing or would not yield the same ids.

    tiktoken merges by the rank of the merged token, `tokenizers` by the order of the merges: they agree when token ids
    follow the merges, which holds for GPT-2's tokenizer and for those trained here.
    """
    try:
        import tiktoken
    except ImportError:
        log.info("tiktoken is not installed; byte-pair encoding takes about 5 times as long")
        return None
    model, splitter = content["model"], content.get("pre_tokenizer") or {}
    alike = (
        model.get("type") == "BPE"
        and not any(model.get(key) for key in ("dropout", "unk_token", "byte_fallback", "ignore_merges"))
        and not any(model.get(key) for key in ("continuing_subword_prefix", "end_of_word_suffix"))
        and content.get("normalizer") is None
        and splitter.get("type") == "ByteLevel"
        and not splitter.get("add_prefix_space", True)
        and splitter.get("use_regex", True)
    )
    if not alike:
        return None
    merged = [model["vocab"].get("".join(_pair(merge))) for merge in model["merges"]]
    if None in merged or any(a >= b for a, b in pairwise(merged)):
        return None
    byte_of = _byte_of_character()
    special = {token["content"] for token in content.get("added_tokens", [])}
    try:
        ranks = {
            bytes(byte_of[character] for character in token): rank
            for token, rank in model["vocab"].items()
            if token not in special
        }
    except KeyError:
        return None
    if len(ranks) != 256 + len(merged) or any(bytes([byte]) not in ranks for byte in range(256)):
        return None
    fast = tiktoken.Encoding("crucible", pat_str=GPT2_PATTERN, mergeable_ranks=ranks, special_tokens={})
    if fast.encode_ordinary(_PROBE) != slow.encode(_PROBE, add_special_tokens=False).ids:
        return None
    return fast


def _pair(merge: str | list[str]) -> Sequence[str]:
    return merge.split(" ") if isinstance(merge, str) else merge


def _byte_of_character() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes (openai/gpt-2, bytes_to_unicode)."""
    printable = [*range(ord("!"), ord("~") + 1), *range(ord("¡"), ord("¬") + 1), *range(ord("®"), ord("ÿ") + 1)]
    table = {chr(byte): byte for byte in printable}
    table |= {chr(256 + n): byte for n, byte in enumerate(byte for byte in range(256) if byte not in printable)}
    return table
