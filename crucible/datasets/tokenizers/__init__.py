"""Text to token ids and back: `char`, `byte`, and `bpe` (trained here, GPT-2's, or from a file).

A tokenizer is stored as JSON beside the shards it made; `Tokenizer.load(dataset_folder)` brings it back.
"""

from crucible.datasets.tokenizers.base import TokenIds, Tokenizer

__all__ = ["TokenIds", "Tokenizer"]
