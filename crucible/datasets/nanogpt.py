"""A dataset in the files that nanoGPT's own scripts read: train.bin, val.bin, meta.pkl."""

from __future__ import annotations

import pickle
import shutil
from pathlib import Path
from typing import Any

from crucible.datasets.disk import writing_to
from crucible.datasets.meta import load_meta
from crucible.datasets.tokenizers import Tokenizer, load_tokenizer
from crucible.datasets.tokenizers.char import CharTokenizer
from crucible.errors import DataError


def export_nanogpt(folder: str | Path, out: str | Path) -> list[Path]:
    """Write nanoGPT's files for the local dataset `folder` into `out`; returns them.

    For char they are byte for byte what nanoGPT's prepare.py writes. For the others meta.pkl holds the vocabulary's
    size only: nanoGPT's train.py needs no more, its sample.py cannot decode them. GPT-2's tokens need no meta.pkl.
    Raises DataError for more than 65,536 tokens, since nanoGPT reads uint16.
    """
    folder, out = Path(folder), Path(out)
    meta = load_meta(folder)
    if meta.dtype != "uint16":
        raise DataError(f"nanoGPT reads token ids of 16 bits; this dataset has {meta.vocab_size} tokens and needs 32")
    written = []
    with writing_to(out):
        out.mkdir(parents=True, exist_ok=True)
        for name, split in meta.splits.items():
            partial = out / f"{name}.bin.partial"
            with partial.open("wb") as target:
                for shard in split.shards:
                    with (folder / shard.file).open("rb") as source:
                        shutil.copyfileobj(source, target, 8 << 20)
            written.append(partial.replace(out / f"{name}.bin"))
        if meta.tokenizer.kind != "gpt2":
            table = out / "meta.pkl"
            table.write_bytes(pickle.dumps(_table(load_tokenizer(folder))))
            written.append(table)
    return written


def _table(tokenizer: Tokenizer) -> dict[str, Any]:
    table: dict[str, Any] = {"vocab_size": tokenizer.vocab_size}
    if isinstance(tokenizer, CharTokenizer):
        table["itos"] = dict(enumerate(tokenizer.characters))
        table["stoi"] = {character: i for i, character in enumerate(tokenizer.characters)}
    return table
