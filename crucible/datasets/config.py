"""What to make a dataset from, documented and checked where it is declared.

One model serves the command line, the job records and the Prefect form.
"""

from __future__ import annotations

from typing import Literal, Self
from urllib.parse import urlsplit

from pydantic import ConfigDict, Field, model_validator

from crucible.formatting import url_label
from crucible.settings import Settings, invalid

SHAKESPEARE_URL = "https://raw.githubusercontent.com/karpathy/char-rnn/master/data/tinyshakespeare/input.txt"
SHAKESPEARE_SHA256 = "86c4e6aa9db7c042ec79f339dcb96d42b0075e16b8fc2e86bf0ca57e2dc565ed"

DEFAULT_BPE_TOKENS = 4096
DEFAULT_CHARACTERS = 1024
SMALLEST_BPE = 257
"""256 bytes and the end-of-text token."""


class DatasetConfig(Settings):
    """Which text to train on, and how it becomes token ids."""

    model_config = ConfigDict(title="Dataset")

    source: str = Field(
        "python-stdlib",
        min_length=1,
        description="Where the text is: `python-stdlib` (the Python standard library's own sources; needs no network), "
        "`shakespeare` (tiny Shakespeare, 1 MB), the path of a file or folder on the machine that preprocesses "
        "(also a folder of nanoGPT with train.bin, val.bin and meta.pkl), "
        "`s3://bucket/prefix`, or `https://…` together with sha256. Files are UTF-8 text, JSON Lines or Parquet; "
        "the first two may be compressed (.gz, .zst, .bz2, .xz).",
        examples=["python-stdlib", "shakespeare", "/data/corpus", "s3://bucket/corpus"],
    )
    sha256: str | None = Field(
        None,
        pattern="^[0-9a-f]{64}$",
        description="What the source must hash to; required for https, optional for a single local file.",
    )
    tokenizer: Literal["char", "byte", "bpe", "gpt2", "file"] = Field(
        "char",
        description="`char` (one token per character, as nanoGPT's shakespeare_char), `byte` (256 tokens), `bpe` "
        "(byte pairs learned from this text), `gpt2` (needs tiktoken and, once, a network), or `file`: the one in "
        "tokenizer_file.",
    )
    tokenizer_file: str | None = Field(
        None,
        description="For tokenizer = file: path of a tokenizer.json, or of a dataset folder whose tokenizer to reuse, "
        "on the machine that preprocesses.",
    )
    vocab_size: int | None = Field(
        None,
        ge=2,
        le=1_000_000,
        description=f"bpe: number of tokens (empty: {DEFAULT_BPE_TOKENS}). char: most characters to tell apart (empty: "
        f"{DEFAULT_CHARACTERS}); the rarest beyond it become U+FFFD, and the dataset says how many.",
    )
    val_fraction: float = Field(
        0.1, gt=0.0, le=0.5, description="Share of the text, from its end, that is kept for validation."
    )
    max_bytes: int | None = Field(
        None,
        ge=1,
        le=1 << 50,
        description="Use at most about this many bytes of the source; empty: all (python-stdlib: 4 MB). Documents "
        "after the limit are left out, and the one on it is cut at a line end.",
    )
    include: tuple[str, ...] = Field(
        ("*",),
        min_length=1,
        description="For a folder or s3 prefix: shell patterns of the files to use, such as *.txt; * crosses "
        "folders. Hidden files are never used.",
    )
    text_field: str = Field(
        "text",
        min_length=1,
        description="For .jsonl and .parquet files: the field that holds the text; each record is a document.",
    )
    exclude: tuple[str, ...] = Field(
        (), description="For a folder or s3 prefix: names or shell patterns of files to leave out."
    )
    shard_bytes: int = Field(
        64 << 20, ge=1 << 10, le=4 << 30, description="Text per shard in bytes; a shard is one task of the flow."
    )

    @property
    def label(self) -> str:
        """The source without what may be a secret in a URL (user, password, query): for names, logs and messages."""
        return url_label(self.source) if urlsplit(self.source).scheme in ("http", "https", "s3") else self.source

    @model_validator(mode="after")
    def _check_fields_together(self) -> Self:
        scheme = urlsplit(self.source).scheme
        if scheme == "https" and self.sha256 is None:
            raise invalid(
                f"sha256 is missing for source = {self.label!r}; give the file's sha256, so that every machine trains "
                f"on the same text"
            )
        if "://" in self.source and scheme not in ("https", "s3", "file"):
            raise invalid(f"source = {self.label!r} cannot be read; use https://, s3:// or a local path")
        if scheme == "s3" and not urlsplit(self.source).netloc:
            raise invalid(f"source = {self.source!r} names no bucket; write s3://bucket/prefix")
        if scheme == "s3" and self.sha256 is not None:
            raise invalid("sha256 cannot be checked for an s3 prefix, which may hold many objects; leave it empty")
        if (self.tokenizer == "file") != (self.tokenizer_file is not None):
            raise invalid(
                f"tokenizer = {self.tokenizer!r} and tokenizer_file = {self.tokenizer_file!r} do not go together; "
                f"tokenizer = 'file' needs a tokenizer_file, and no other tokenizer takes one"
            )
        if self.tokenizer == "bpe" and self.vocab_size is not None and self.vocab_size < SMALLEST_BPE:
            raise invalid(f"vocab_size = {self.vocab_size} is too small for bpe; it must be at least {SMALLEST_BPE}")
        if self.tokenizer not in ("bpe", "char") and self.vocab_size is not None:
            raise invalid(
                f"vocab_size = {self.vocab_size} has no meaning for tokenizer = {self.tokenizer!r}; leave it empty"
            )
        return self
