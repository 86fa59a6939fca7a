"""Load tokenizers from files: JSON, never pickle, so that opening a dataset cannot run code."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from crucible.datasets.tokenizers.base import Tokenizer
from crucible.datasets.tokenizers.bpe import BpeTokenizer
from crucible.datasets.tokenizers.byte import ByteTokenizer
from crucible.datasets.tokenizers.char import CharTokenizer
from crucible.errors import DataError

TOKENIZER_FILE = "tokenizer.json"


def load_tokenizer(path: Path) -> Tokenizer:
    """The tokenizer in a dataset folder, in a file Crucible wrote, or in a Hugging Face tokenizer.json."""
    file = path / TOKENIZER_FILE if path.is_dir() else path
    try:
        text = file.read_text(encoding="utf-8-sig")
        content = json.loads(text)
    except OSError as error:
        raise DataError(f"tokenizer {file} cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"tokenizer {file} is not JSON: {error}") from error
    return tokenizer_from_json(text, content, str(file))


def tokenizer_from_json(text: str, content: Any, name: str) -> Tokenizer:
    """The tokenizer that `text`, parsed as `content`, describes; `name` is for the error message."""
    kind = content.get("kind") if isinstance(content, dict) else None
    if kind == "char" and isinstance(content.get("characters"), str) and content["characters"]:
        return CharTokenizer(content["characters"])
    if kind == "byte":
        return ByteTokenizer()
    if isinstance(content, dict) and "model" in content:
        return BpeTokenizer(text, name)
    raise DataError(
        f"tokenizer {name} is neither one that Crucible wrote nor a tokenizer.json of the `tokenizers` library"
    )
