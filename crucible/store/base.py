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
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible.errors import ConfigError, ObjectMissing, StoreError


@dataclass(frozen=True)
class ObjectInfo:
    """One listed object: its key relative to the store's root, and its size in bytes."""

    key: str
    size: int


class Store(ABC):
    """Whole objects under slash-separated relative keys. Every method raises `StoreError` when the store fails."""

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

    def exists(self, key: str) -> bool:
        try:
            self.size(key)
        except ObjectMissing:
            return False
        return True

    def read_json(self, key: str) -> Any:
        """The object parsed as JSON. Raises `ObjectMissing`, and `StoreError` when it is not JSON."""
        try:
            return json.loads(self.read(key))
        except ValueError as error:
            raise StoreError(f"{self.uri}/{key} is not valid JSON: {error}") from error

    def write_json(self, key: str, value: Any) -> None:
        self.write(key, _json_bytes(value))

    def create_json(self, key: str, value: Any) -> None:
        self.create(key, _json_bytes(value))

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
def whole_file(path: Path) -> Iterator[Path]:
    """A name to download to, renamed to `path` at the end; two processes may download the same object at once."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{uuid.uuid4().hex}.partial")
    try:
        yield partial
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)
