"""Text to token ids and back: `char`, `byte`, and `bpe` (trained here, GPT-2's, or from a file).

A tokenizer is stored as JSON beside the shards it made; `load_tokenizer(dataset_folder)` reads it again.
"""

from crucible.datasets.tokenizers.base import TokenIds, Tokenizer
from crucible.datasets.tokenizers.files import load_tokenizer

__all__ = ["TokenIds", "Tokenizer", "load_tokenizer"]
