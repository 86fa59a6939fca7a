"""The object store that everything durable lives in: `file://…` on one machine, `s3://bucket/prefix` for clouds.

The interface is what the rest of Crucible needs and no more: whole objects, create-only writes, listing by prefix,
and file transfers. Two guarantees carry the recovery protocol (`crucible.jobs.job`, `crucible.checkpoints.commits`):

* an object is never seen half-written: `write`, `create` and `upload` appear whole or not at all;
* `create` has exactly one winner among racing writers, on a local file system and on S3 alike.

    >>> store = store_at("file:///var/lib/crucible")
    >>> store.write_json("greeting.json", {"hello": "world"})
    >>> store.read_json("greeting.json")
    {'hello': 'world'}
"""

from __future__ import annotations

import json
import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from crucible.errors import ConfigError, LocalDiskError, ObjectMissing, RecordDamaged
from crucible.settings import explain_validation_error

M = TypeVar("M", bound=BaseModel)


def _now() -> datetime:
    return datetime.now(UTC)


@dataclass(frozen=True)
class ObjectInfo:
    """One listed object: its key relative to the store's root, its size in bytes, and when it was written."""

    key: str
    size: int
    modified: datetime = field(default_factory=_now, compare=False)
    """Now, for a store that does not say."""


@dataclass(frozen=True)
class UnfinishedUpload:
    """Bytes that a killed process left on the way to an object; no listing shows them."""

    name: str
    bytes: int
    """0 where the store does not say."""
    began: datetime


class Store(ABC):
    """Whole objects under slash-separated relative keys.

    Every method raises `StoreUnavailable` when the same request may succeed later, `StoreRefused` when a person has to
    change something first. `upload` and `download` raise `LocalDiskError` when the fault is this machine's.
    """

    uri: str

    @abstractmethod
    def read(self, key: str) -> bytes:
        """The object's bytes. Raises `ObjectMissing`."""

    @abstractmethod
    def write(self, key: str, data: bytes) -> None:
        """Put an object, replacing what was there."""

    @abstractmethod
    def create(self, key: str, data: bytes) -> None:
        """Put an object that must not exist yet. Raises `ObjectExists`.

        Finding exactly `data` already there counts as having created it: a network client may repeat a request whose
        answer was lost, and must not lose against itself. Racing writers therefore put something of their own
        (an owner's token) into `data`.
        """

    @abstractmethod
    def size(self, key: str) -> int:
        """The object's size in bytes. Raises `ObjectMissing`."""

    @abstractmethod
    def folders(self, prefix: str = "") -> list[str]:
        """The names of the folders directly below `prefix`, sorted."""

    @abstractmethod
    def list(self, prefix: str = "") -> list[ObjectInfo]:
        """Every object below the folder `prefix`, at any depth, sorted by key; empty if there is none."""

    @abstractmethod
    def delete(self, key: str) -> None:
        """Remove an object; one that is not there is no error."""

    @abstractmethod
    def upload(self, path: Path, key: str) -> None:
        """Put the file's contents as an object, with bounded memory."""

    @abstractmethod
    def download(self, key: str, path: Path) -> None:
        """Write the object to a file, which appears whole or not at all. Raises `ObjectMissing`."""

    @abstractmethod
    def child(self, prefix: str) -> Store:
        """The part of this store below `prefix`, as a store of its own."""

    def require_guarantees(self) -> None:  # noqa: B027 - most stores keep them by construction
        """Raise `StoreRefused` if the store does not keep the promises that the fence between attempts rests on."""

    def unfinished_uploads(self) -> Sequence[UnfinishedUpload]:
        """Uploads under way or abandoned: only their age tells which."""
        return []

    def abort_upload(self, name: str) -> None:  # noqa: B027 - a store without them has none to abort
        """Remove what an unfinished upload left; one that is gone is no error."""

    def link(self, key: str, seconds: float) -> str | None:
        """An address at which anyone can download the object for so long; None where the store has no such addresses.

        Raises `ConfigError` for a time that the store cannot promise.
        """
        return None

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except ObjectMissing:
            return False
        return True

    def read_json(self, key: str, fix: str = "") -> Any:
        """The object parsed as JSON. Raises `ObjectMissing`, and `RecordDamaged` (ending with `fix`) if it is not."""
        data = self.read(key)
        try:
            return json.loads(data)
        except (ValueError, RecursionError) as error:
            reason = str(error) if data else "it is empty"
            raise self.damaged(key, f"not valid JSON: {reason}", fix) from error

    def read_model(self, key: str, model: type[M], fix: str = "") -> M:
        """The record parsed as `model`. Raises `ObjectMissing`, and `RecordDamaged` (which ends with `fix`)."""
        try:
            return model.model_validate(self.read_json(key, fix))
        except ValidationError as error:
            raise self.damaged(key, explain_validation_error(error), fix) from None

    def damaged(self, key: str, reason: str, fix: str = "") -> RecordDamaged:
        """The error to raise for an object that is not what it should be."""
        fix = fix or "restore it from a copy, or delete it if it can be done without"
        return RecordDamaged(f"{self.uri}/{key} is damaged: {reason}; {fix}")

    def write_json(self, key: str, value: Any) -> None:
        self.write(key, _json_bytes(value))

    def create_json(self, key: str, value: Any) -> None:
        self.create(key, _json_bytes(value))

    def write_model(self, key: str, record: BaseModel) -> None:
        self.write_json(key, record.model_dump(mode="json"))

    def create_model(self, key: str, record: BaseModel) -> None:
        self.create_json(key, record.model_dump(mode="json"))

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"


def _json_bytes(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True, default=str) + "\n").encode()


def checked_key(key: str) -> str:
    """`key` without slashes around it. Raises `ConfigError` for one that could leave the store."""
    if key.startswith("/") or ".." in key.split("/"):
        raise ConfigError(f"store key {key!r} must be relative and must not climb out with '..'")
    return key.strip("/")


@contextmanager
def local_disk(path: Path) -> Iterator[None]:
    """Turns the failures of this machine's files into `LocalDiskError`, apart from those of the store."""
    try:
        yield
    except OSError as error:
        raise LocalDiskError(
            f"{error.filename or path}: {error.strerror or error}; check the disk that it is on"
        ) from error


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A name to download to, renamed to `path` at the end; two processes may download the same object at once."""
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    with local_disk(path):
        path.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        with local_disk(path):
            partial.replace(path)
    finally:
        with suppress(OSError):
            partial.unlink(missing_ok=True)
