"""From a DatasetConfig to a dataset in the store, content-addressed: `datasets/<digest>/`.

The digest covers the source's content, the options that decide the tokens, and the format's version. `meta.json` is
created last. The next build overwrites what a killed one left behind, and two concurrent builds of a dataset write the
same objects.

`build_dataset` does everything in this process. The flow calls the same parts: `plan`, `build_shard` for each item
(in any order, in parallel), `finish`.
"""

from __future__ import annotations

import hashlib
import json
import logging
import threading
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from pydantic import BaseModel

from crucible.datasets.config import DEFAULT_BPE_TOKENS, DEFAULT_CHARACTERS, DatasetConfig
from crucible.datasets.disk import work_folder
from crucible.datasets.finished import DatasetInfo, find_dataset, prefix_of
from crucible.datasets.formats import FileKind, Unreadable, file_kind, not_utf8, plain_text, refuse
from crucible.datasets.meta import META_FILE, SPLITS, DatasetMeta, ShardMeta, SplitMeta, TokenizerMeta
from crucible.datasets.nanogpt_source import (
    TokenItem,
    bin_files,
    copy_tokens,
    is_nanogpt_folder,
    plan_tokens,
    tokenizer_of,
)
from crucible.datasets.progress import Progress, ProgressCallback, silent
from crucible.datasets.shards import ShardItem, plan_shards, split_text, text_bytes, write_shard
from crucible.datasets.sources import (
    STDLIB_BYTES,
    LocalSource,
    Source,
    content_digest,
    hash_documents,
    limited,
    open_source,
)
from crucible.datasets.text import Document, NotUtf8, code_points, read_pieces
from crucible.datasets.tokenizer_choice import BPE_SAMPLE_BYTES, given_tokenizer, make_tokenizer
from crucible.datasets.tokenizers import Tokenizer
from crucible.datasets.tokenizers.char import CharTokenizer
from crucible.datasets.tokenizers.files import TOKENIZER_FILE
from crucible.errors import DataError, ObjectExists, ObjectMissing, RecordDamaged
from crucible.store import Store

logger = logging.getLogger(__name__)

FORMAT_VERSION = 1
"""Part of every digest. Raise it when the same text and options would give other tokens than before."""

READER_VERSION = 1
"""Part of the digest of text that is not used as its bytes lie there (`formats`)."""

_CODE_POINTS = 0x110000


@dataclass(frozen=True)
class Plan:
    """Everything decided before tokens are written. If `built` is set there is nothing left to do."""

    digest: str
    source: dict[str, Any]
    items: tuple[ShardItem, ...] = ()
    built: DatasetInfo | None = None
    documents: tuple[Document, ...] = ()
    tokenizer: Tokenizer | None = None
    tokenizer_kind: str = ""
    replaced_characters: int = 0
    request: str | None = None
    work: Path = field(default_factory=Path)


def build_dataset(config: DatasetConfig, store: Store, progress: ProgressCallback = silent) -> DatasetInfo:
    """Preprocess in this process, or find that it is done. Raises DataError, ConfigError or StoreError."""
    with work_folder() as work:
        planned = plan(config, store, work, progress)
        if planned.built is not None:
            return planned.built
        meter = Meter(planned, progress)
        shards = [build_shard(planned, item, store, meter) for item in planned.items]
        return finish(planned, shards, store)


def plan(config: DatasetConfig, store: Store, work: Path, progress: ProgressCallback = silent) -> Plan:
    """Make the text local, read it once, choose the tokenizer and cut the text into shards.

    `work` is a scratch folder that must outlive the plan. A dataset that the store already holds is found by whatever
    identity of the source is cheapest: a given sha256, the ETags of S3 objects, else the hashes of the files.
    """
    source = open_source(config)
    if isinstance(source, LocalSource) and is_nanogpt_folder(source.path):
        return _plan_nanogpt(source, config, store, work, progress)
    options, request = _options(config), _request(source, config)
    if built := _find_unread(source, config, request, store):
        return Plan(built.digest, source.description, built=built)

    documents = source.documents(work, progress)
    content = source.content_sha256 or content_digest(documents, hash_documents(documents, progress))
    _require_content(config, content)
    files, looked_at = len(documents), [file_kind(document) for document in documents]
    problems = [kind for kind in looked_at if isinstance(kind, Unreadable)]
    documents = [document for document, kind in zip(documents, looked_at, strict=True) if isinstance(kind, FileKind)]
    kinds = [kind for kind in looked_at if isinstance(kind, FileKind)]
    digest = _digest({"content": content, **options, **_reading(kinds, config)})
    if not problems and (built := find_dataset(store, digest)):
        _remember(store, request, digest)
        return Plan(digest, source.description, built=built)

    documents, unreadable = plain_text(documents, kinds, config.text_field, work, progress)
    problems += unreadable
    documents = [document for document in limited(documents, _byte_limit(config)) if document.length]
    if not documents and not problems:
        raise DataError(f"source {config.label} is empty; give a source that holds text")
    characters, counts, unreadable = _read_through(documents, progress)
    refuse(problems + unreadable, files)  # all at once, whatever is wrong with each
    spans = split_text(documents, characters, config.val_fraction)
    tokenizer = make_tokenizer(config, counts, spans["train"], len(documents), progress)
    replaced = tokenizer.missing(counts) if isinstance(tokenizer, CharTokenizer) else 0
    return Plan(
        digest=digest,
        source=source.description,
        items=tuple(
            item for split in SPLITS for item in plan_shards(split, spans[split], config.shard_bytes, tokenizer.cut)
        ),
        documents=tuple(documents),
        tokenizer=tokenizer,
        tokenizer_kind=tokenizer.kind if config.tokenizer == "file" else config.tokenizer,
        replaced_characters=replaced,
        request=request,
        work=work,
    )


def find_unread(config: DatasetConfig, store: Store) -> DatasetInfo | None:
    """The dataset, where the store holds it and that is known without the text: by a given sha256, or by ETags.

    Raises DataError or StoreError.
    """
    source = open_source(config)
    return _find_unread(source, config, _request(source, config), store)


def _find_unread(source: Source, config: DatasetConfig, request: str | None, store: Store) -> DatasetInfo | None:
    if request and (known := _indexed(store, request)) and (built := find_dataset(store, known)):
        return built
    if source.content_sha256 is not None:
        for reading in ({"reader": READER_VERSION, "text_field": config.text_field}, {"reader": READER_VERSION}, {}):
            digest = _digest({"content": source.content_sha256, **_options(config), **reading})
            if built := find_dataset(store, digest):
                return built
    return None


def _request(source: Source, config: DatasetConfig) -> str | None:
    """The digest of what is asked for, where the source has an identity that does not take its text."""
    if (identity := source.request()) is None:
        return None
    field = {} if config.text_field == "text" else {"text_field": config.text_field}
    return _digest({"request": identity, **_options(config), **field})


def _plan_nanogpt(
    source: LocalSource, config: DatasetConfig, store: Store, work: Path, progress: ProgressCallback
) -> Plan:
    """Take the tokens of a folder that nanoGPT's prepare.py wrote."""
    tokenizer = tokenizer_of(source.path, config)
    documents = bin_files(source.path)
    content = content_digest(documents, hash_documents(documents, progress))
    _require_content(config, content)
    described = {"kind": "nanogpt", "path": str(source.path)}
    made_by = hashlib.sha256(tokenizer.to_json().encode()).hexdigest()
    digest = _digest(
        {"content": content, "format": FORMAT_VERSION, "tokens_of": made_by, "shard_bytes": config.shard_bytes}
    )
    if built := find_dataset(store, digest):
        return Plan(digest, described, built=built)
    return Plan(
        digest=digest,
        source=described,
        items=tuple(plan_tokens(source.path, tokenizer, config.shard_bytes)),
        documents=tuple(documents),
        tokenizer=tokenizer,
        tokenizer_kind="gpt2" if config.tokenizer != "file" and tokenizer.kind == "bpe" else tokenizer.kind,
        work=work,
    )


def _require_content(config: DatasetConfig, content: str) -> None:
    if config.sha256 is not None and content != config.sha256:
        raise DataError(
            f"source {config.label} has sha256 {content}, expected {config.sha256}: it is not the text that "
            f"you specified; give the right file, or correct sha256"
        )


def build_shard(planned: Plan, item: ShardItem, store: Store, meter: Meter | None = None) -> ShardMeta:
    """Tokenize one item and upload it. May run in several threads at once, and again after a failure."""
    assert planned.tokenizer is not None
    path = planned.work / f"{item.name}.bin"
    try:
        advanced = meter.advanced if meter else lambda count: None
        if isinstance(item, TokenItem):
            shard = copy_tokens(item, planned.tokenizer, path, advanced)
        else:
            shard = write_shard(item, planned.tokenizer, path, advanced)
        store.upload(path, f"{prefix_of(planned.digest)}/{shard.file}")
    finally:
        path.unlink(missing_ok=True)
    return shard


def finish(planned: Plan, shards: list[ShardMeta], store: Store) -> DatasetInfo:
    """Write the tokenizer and, last, meta.json. `shards` in the order of `planned.items`."""
    assert planned.tokenizer is not None
    for document in {document.path: document for document in planned.documents}.values():
        document.require_unchanged()
    tokenizer_json = planned.tokenizer.to_json().encode()
    by_split = {
        split: [(item, shard) for item, shard in zip(planned.items, shards, strict=True) if item.split == split]
        for split in SPLITS
    }
    meta = DatasetMeta(
        digest=planned.digest,
        source=planned.source,
        tokenizer=TokenizerMeta(
            kind=planned.tokenizer_kind,
            file=TOKENIZER_FILE,
            sha256=hashlib.sha256(tokenizer_json).hexdigest(),
            replaced_characters=planned.replaced_characters,
        ),
        vocab_size=planned.tokenizer.vocab_size,
        dtype="uint16" if planned.tokenizer.dtype.itemsize == 2 else "uint32",
        splits={
            split: SplitMeta(
                tokens=sum(shard.tokens for _, shard in pairs),
                bytes=text_bytes([item for item, _ in pairs], planned.tokenizer),
                shards=tuple(shard for _, shard in pairs),
            )
            for split, pairs in by_split.items()
        },
    )
    prefix = prefix_of(planned.digest)
    store.write(f"{prefix}/{TOKENIZER_FILE}", tokenizer_json)
    try:
        store.create_json(f"{prefix}/{META_FILE}", meta.model_dump(mode="json"))
    except ObjectExists:  # another machine was faster with the same dataset
        meta = DatasetMeta.parse(store.read_json(f"{prefix}/{META_FILE}"), f"{store.uri}/{prefix}/{META_FILE}")
    _remember(store, planned.request, planned.digest)
    return DatasetInfo(f"{store.uri}/{prefix}", meta, cached=False)


class Meter:
    """Adds up what several threads have tokenized and passes it on."""

    def __init__(self, planned: Plan, progress: ProgressCallback) -> None:
        self._progress, self._lock = progress, threading.Lock()
        self._done, self._total = 0, sum(item.length for item in planned.items)

    def advanced(self, count: int) -> None:
        with self._lock:
            self._done += count
            self._progress(Progress("tokenize", self._done, self._total))


def _read_through(
    documents: list[Document], progress: ProgressCallback
) -> tuple[list[int], np.ndarray, list[Unreadable]]:
    """The characters of each document, how often each code point occurs in all, and the files that are not UTF-8."""
    characters = [0] * len(documents)
    counts = np.zeros(_CODE_POINTS, dtype=np.int64)
    problems = []
    done, total = 0, sum(document.length for document in documents)
    for index, document in enumerate(documents):
        try:
            for piece in read_pieces(document, 0, document.length):
                of_piece = np.bincount(code_points(piece))
                counts[: len(of_piece)] += of_piece
                characters[index] += len(piece)
                done += len(piece)
                progress(Progress("read", done, total))
        except NotUtf8 as error:
            problems.append(not_utf8(error))
    progress(Progress("read", total, total))
    return characters, counts, problems


def _reading(kinds: list[FileKind], config: DatasetConfig) -> dict[str, Any]:
    """What decides the text besides the files' bytes: nothing where they are used as they lie there."""
    if all(kind.as_it_is for kind in kinds):
        return {}
    field = {"text_field": config.text_field} if any(kind.records for kind in kinds) else {}
    return {"reader": READER_VERSION, **field}


def _options(config: DatasetConfig) -> dict[str, Any]:
    """What decides the tokens besides the text. Patterns are not in it: they decide which text it is."""
    options: dict[str, Any] = {
        "format": FORMAT_VERSION,
        "tokenizer": config.tokenizer,
        "val_fraction": config.val_fraction,
        "max_bytes": _byte_limit(config),
        "shard_bytes": config.shard_bytes,
    }
    if config.tokenizer == "bpe":
        import tokenizers

        # Which merges are learned is promised by nobody across versions of the library.
        options |= {
            "vocab_size": config.vocab_size or DEFAULT_BPE_TOKENS,
            "sample_bytes": BPE_SAMPLE_BYTES,
            "library": tokenizers.__version__,
        }
    elif config.tokenizer == "char":
        options["vocab_size"] = config.vocab_size or DEFAULT_CHARACTERS
    elif config.tokenizer == "file":
        options["tokenizer"] = hashlib.sha256(given_tokenizer(config).to_json().encode()).hexdigest()
    return options


def _byte_limit(config: DatasetConfig) -> int | None:
    if config.max_bytes is None and config.source == "python-stdlib":
        return STDLIB_BYTES
    return config.max_bytes


def _digest(content: dict[str, Any]) -> str:
    """The first 128 bits of the sha256: short enough to read, long enough to be unique."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()[:32]


def _indexed(store: Store, request: str) -> str | None:
    try:
        return store.read_model(f"datasets/index/{request}.json", _IndexEntry).digest
    except (ObjectMissing, RecordDamaged):
        return None  # it only saves a look at the source, and is written again


def _remember(store: Store, request: str | None, digest: str) -> None:
    if request is not None:
        store.write_model(f"datasets/index/{request}.json", _IndexEntry(digest=digest))


class _IndexEntry(BaseModel):
    """Which dataset a request leads to."""

    schema_version: int = 1
    digest: str
