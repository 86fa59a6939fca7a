from __future__ import annotations

from typing import Any

import pytest

from crucible.datasets.config import DatasetConfig
from crucible.errors import ConfigError


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"sorce": "x"}, r"sorce = 'x' is not a known setting; did you mean source\?"),
        ({"source": "https://example.org/a.txt"}, r"sha256 is missing for source = 'https://example.org/a.txt'"),
        ({"source": "http://example.org/a.txt"}, r"source = 'http://.*' cannot be read; use https://"),
        ({"source": "s3://bucket/a", "sha256": "0" * 64}, r"sha256 cannot be checked for an s3 prefix"),
        ({"sha256": "xyz"}, r"sha256 = 'xyz' is not valid"),
        ({"tokenizer": "wordpiece"}, r"tokenizer = 'wordpiece' is not valid; it must be 'char', 'byte', 'bpe'"),
        ({"tokenizer": "file"}, r"tokenizer = 'file' needs a tokenizer_file"),
        ({"tokenizer_file": "a.json"}, r"tokenizer = 'char' and tokenizer_file = 'a.json' do not go together"),
        ({"tokenizer": "bpe", "vocab_size": 256}, r"vocab_size = 256 is too small for bpe; it must be at least 257"),
        ({"tokenizer": "byte", "vocab_size": 300}, r"vocab_size = 300 has no meaning for tokenizer = 'byte'"),
        ({"val_fraction": 0.0}, r"val_fraction = 0.0 is not valid"),
        ({"max_bytes": -5}, r"max_bytes = -5 is not valid"),
    ],
)
def test_an_invalid_value_is_one_message_with_field_value_and_mend(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        DatasetConfig.parse(values)


def test_every_field_is_described_for_the_form() -> None:
    properties = DatasetConfig.model_json_schema()["properties"]
    assert all(len(field.get("description", "")) > 20 for field in properties.values())
    assert properties["tokenizer"]["enum"] == ["char", "byte", "bpe", "gpt2", "file"]
