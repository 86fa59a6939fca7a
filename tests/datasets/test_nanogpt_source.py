"""nanoGPT's own folder as a dataset: its tokens as they are, its pickle read and never executed."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from crucible.datasets.build import build_dataset
from crucible.datasets.config import DatasetConfig
from crucible.datasets.fetch import fetch_dataset
from crucible.datasets.nanogpt import export_nanogpt
from crucible.datasets.tokenizers import load_tokenizer
from crucible.errors import DataError
from crucible.store import Store


@pytest.fixture
def text_file(tmp_path: Path) -> Path:
    path = tmp_path / "text.txt"
    path.write_text("".join(f"Line {n}: naïve – {n * n % 977}\n" for n in range(700)), encoding="utf-8")
    return path


def tokens_of(folder: Path, split: str) -> bytes:
    return b"".join(path.read_bytes() for path in sorted(folder.glob(f"{split}-*.bin")))


@pytest.mark.parametrize("tokenizer", ["char", "byte", "bpe"])
def test_its_tokens_and_characters_are_taken_as_they_are(
    text_file: Path, store: Store, tmp_path: Path, tokenizer: str
) -> None:
    vocab_size = 300 if tokenizer == "bpe" else None
    made = build_dataset(DatasetConfig(source=str(text_file), tokenizer=tokenizer, vocab_size=vocab_size), store)
    cache = tmp_path / "cache"
    folder = fetch_dataset(store, made.digest, cache)
    export_nanogpt(folder, tmp_path / "nanogpt")
    stated: dict[str, Any] = {"source": str(tmp_path / "nanogpt"), "shard_bytes": 5000}
    if tokenizer != "char":
        with pytest.raises(DataError, match=r"holds no characters|says vocab_size"):
            build_dataset(DatasetConfig(**stated), store)
        stated |= {"tokenizer": "file", "tokenizer_file": str(folder)} if tokenizer == "bpe" else {"tokenizer": "byte"}

    taken = build_dataset(DatasetConfig(**stated), store)
    again = fetch_dataset(store, taken.digest, cache)
    assert len(taken.meta.splits["train"].shards) > 1
    for split, before in made.meta.splits.items():
        assert tokens_of(again, split) == tokens_of(folder, split)
        assert (taken.meta.splits[split].tokens, taken.meta.splits[split].bytes) == (before.tokens, before.bytes)
    assert load_tokenizer(again).to_json() == load_tokenizer(folder).to_json()
    assert build_dataset(DatasetConfig(**stated), store).cached
    assert taken.meta.source == {"kind": "nanogpt", "path": str(tmp_path / "nanogpt")}


class Executed:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("executed",)


TABLE = {"vocab_size": 3, "itos": {0: "a", 1: "b", 2: "ü"}, "stoi": {"a": 0, "b": 1, "ü": 2}}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    made = tmp_path / "data"
    made.mkdir()
    for split in ("train", "val"):
        (made / f"{split}.bin").write_bytes(np.array([0, 1, 2] * 50, dtype="<u2").tobytes())
    (made / "meta.pkl").write_bytes(pickle.dumps(TABLE))
    return made


@pytest.mark.parametrize(
    ("spoil", "stated", "message"),
    [
        (lambda f: (f / "meta.pkl").write_bytes(pickle.dumps({**TABLE, "x": Executed()})), {}, "it names posix.mkdir"),
        (lambda f: (f / "meta.pkl").write_bytes(b"\x80\x04no"), {}, "cannot be read as plain values"),
        (lambda f: (f / "meta.pkl").write_bytes(pickle.dumps([1])), {}, "holds a list"),
        (lambda f: (f / "meta.pkl").write_bytes(pickle.dumps({"itos": {1: "a"}})), {}, "itos is no table"),
        (lambda f: (f / "meta.pkl").write_bytes(pickle.dumps({**TABLE, "vocab_size": 4})), {}, "says vocab_size = 4"),
        (lambda f: (f / "val.bin").write_bytes(b"\0" * 7), {}, "val.bin has 7 bytes"),
        (lambda f: (f / "val.bin").write_bytes(b"\3\0"), {}, "has the token 3, but the tokenizer only 3 tokens"),
        (lambda f: None, {"tokenizer": "bpe"}, "has characters as tokens, not tokenizer = 'bpe'; leave tokenizer out"),
        (lambda f: None, {"max_bytes": 10}, "leave max_bytes and vocab_size empty"),
        (lambda f: None, {"sha256": "0" * 64}, "expected 0000"),
    ],
    ids=["code", "damaged", "list", "holes", "size", "odd", "beyond", "bpe", "max_bytes", "sha256"],
)
def test_what_is_wrong_with_a_folder_is_named(
    folder: Path,
    store: Store,
    monkeypatch: pytest.MonkeyPatch,
    spoil: Callable[[Path], object],
    stated: dict[str, Any],
    message: str,
) -> None:
    monkeypatch.chdir(folder)
    spoil(folder)
    with pytest.raises(DataError) as caught:
        build_dataset(DatasetConfig(source=str(folder), **stated), store)
    assert message in str(caught.value)
    assert not (folder / "executed").exists()


def test_a_folder_without_a_table_has_gpt2s_tokens(folder: Path, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    (folder / "meta.pkl").unlink()
    monkeypatch.setattr(
        "crucible.datasets.nanogpt_source.gpt2_bpe", lambda: (_ for _ in ()).throw(DataError("GPT-2's own"))
    )
    with pytest.raises(DataError, match="GPT-2's own"):
        build_dataset(DatasetConfig(source=str(folder)), store)
