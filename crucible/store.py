"""The object store that everything durable lives in: `file://…` on one machine, `s3://bucket/prefix` for clouds.

The interface is what the rest of Crucible needs and no more: whole objects, create-only writes, listing by prefix,
and file transfers. Two guarantees carry the recovery protocol (`crucible.jobs`, `crucible.checkpoints`):

* an object is never seen half-written: `write`, `create` and `upload` appear whole or not at all;
* `create` has exactly one winner among racing writers, on a local file system and on S3 alike.

    >>> store = Store.open("file:///var/lib/crucible")
    >>> store.write_json("greeting.json", {"hello": "world"})
    >>> store.read_json("greeting.json")
    {'hello': 'world'}
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import stat
import time
import uuid
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

from crucible.errors import ConfigError, ObjectExists, ObjectMissing, StoreError

COPY_CHUNK_BYTES = 8 << 20
"""Read size of file transfers: memory stays bounded whatever the file's size."""


def crucible_home() -> Path:
    """The folder of local state: `$CRUCIBLE_HOME`, or `~/.crucible`."""
    return Path(os.environ.get("CRUCIBLE_HOME") or "~/.crucible").expanduser().absolute()


def default_store_uri() -> str:
    """The store used when none is named: `$CRUCIBLE_STORE`, or a folder under `crucible_home()`."""
    return os.environ.get("CRUCIBLE_STORE") or (crucible_home() / "store").as_uri()


@dataclass(frozen=True)
class ObjectInfo:
    """One listed object: its key relative to the store's root, and its size in bytes."""

    key: str
    size: int


class Store(ABC):
    """Whole objects under slash-separated relative keys. Every method raises `StoreError` when the store fails."""

    uri: str

    @staticmethod
    def open(uri: str, **options: Any) -> Store:
        """The store at `uri`: a path, `file:///path` or `s3://bucket[/prefix]`; nothing is contacted yet.

        `options` go to s3fs (`key`, `secret`, `token`, `endpoint_url`, `client_kwargs`, …); without them the usual
        AWS environment variables and profiles apply, `AWS_ENDPOINT_URL` included.

        Raises `ConfigError` for any other kind of address, and for s3 when the `aws` extra is not installed.
        """
        parts = urlsplit(uri)
        if parts.scheme in ("", "file"):
            return FileStore(Path(unquote(parts.path) if parts.scheme else uri).expanduser().absolute())
        if parts.scheme == "s3" and parts.netloc:
            from crucible.store_s3 import S3Store

            return S3Store(parts.netloc, parts.path.strip("/"), options)
        raise ConfigError(f"store: {uri!r} is not an address Crucible knows; use file:///path or s3://bucket/prefix")

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


class FileStore(Store):
    """Objects as files below a folder. A file is written beside its place, fsynced, then renamed or linked in."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.uri = root.as_uri()

    def read(self, key: str) -> bytes:
        with self._failures(key):
            return self._path(key).read_bytes()

    def write(self, key: str, data: bytes) -> None:
        with self._failures(key), self._staged() as staged:
            staged.write_bytes(data)
            self._place(staged, key, os.replace)

    def create(self, key: str, data: bytes) -> None:
        with self._failures(key), self._staged() as staged:
            staged.write_bytes(data)
            try:
                self._place(staged, key, os.link)
            except FileExistsError:
                if self._path(key).read_bytes() != data:
                    raise ObjectExists(f"{self.uri}/{key} already exists") from None

    def size(self, key: str) -> int:
        with self._failures(key):
            found = self._path(key).stat()
            if stat.S_ISDIR(found.st_mode):
                raise ObjectMissing(f"{self.uri}/{key} does not exist")
            return found.st_size

    def folders(self, prefix: str = "") -> list[str]:
        with self._failures(prefix):
            try:
                entries = list(os.scandir(self._path(prefix)))
            except (FileNotFoundError, NotADirectoryError):
                return []
            return sorted(entry.name for entry in entries if entry.is_dir() and entry.name != _STAGING)

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        found: list[ObjectInfo] = []
        with self._failures(prefix):
            for folder, folders, files in os.walk(self._path(prefix), onerror=_unless_gone):
                folders[:] = [name for name in folders if name != _STAGING]
                for name in files:
                    path = Path(folder, name)
                    with suppress(FileNotFoundError):  # deleted by someone else while we walk
                        found.append(ObjectInfo(path.relative_to(self.root).as_posix(), path.stat().st_size))
        return sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._failures(key):
            path.unlink(missing_ok=True)
        for parent in path.parents:  # a prefix without objects does not exist; neither should its folder
            if parent == self.root:
                break
            try:
                parent.rmdir()
            except OSError:
                break

    def upload(self, path: Path, key: str) -> None:
        self._sweep_staging()
        with self._failures(key), self._staged() as staged:
            _copy(path, staged)
            self._place(staged, key, os.replace)

    def download(self, key: str, path: Path) -> None:
        with self._failures(key), whole_file(path) as partial:
            _copy(self._path(key), partial)

    def child(self, prefix: str) -> FileStore:
        return FileStore(self._path(prefix))

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """A fresh file to write to, on the same file system as the objects, so that the last move is atomic."""
        staging = self.root / _STAGING
        staging.mkdir(parents=True, exist_ok=True)
        staged = staging / uuid.uuid4().hex  # not mkstemp: its files are for their owner's eyes only
        try:
            yield staged
        finally:
            staged.unlink(missing_ok=True)

    def _place(self, staged: Path, key: str, move: Callable[[Path, Path], None]) -> None:
        """Move the whole, durable file to the object's place."""
        _fsync(staged)
        target = self._path(key)
        for left in reversed(range(_PLACE_TRIES)):
            try:
                _make_folder(target.parent)
                move(staged, target)
            except FileNotFoundError:  # a concurrent delete removed a folder that it had just emptied
                if left and staged.exists():
                    continue
                raise
            with suppress(FileNotFoundError):  # deleted again already
                _fsync(target.parent)
            return

    def _sweep_staging(self) -> None:
        """Remove what killed writers left behind, once it is too old to be anyone's work in progress."""
        with suppress(FileNotFoundError):
            for entry in os.scandir(self.root / _STAGING):
                with suppress(FileNotFoundError):
                    if time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS:
                        Path(entry).unlink()

    @contextmanager
    def _failures(self, key: str) -> Iterator[None]:
        try:
            yield
        except FileNotFoundError as error:
            raise ObjectMissing(f"{self.uri}/{key} does not exist") from error
        except OSError as error:
            raise StoreError(f"store {self.uri}: {key or 'listing'} failed: {error.strerror or error}") from error


_STAGING = ".partial"
_ABANDONED_SECONDS = 6 * 3600
_PLACE_TRIES = 100


def _make_folder(path: Path) -> None:
    """Make the folder; `FileNotFoundError` when one that was there vanished meanwhile."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        if not stat.S_ISDIR(path.stat().st_mode):  # one look: it may vanish, and come back, between two
            raise NotADirectoryError(errno.ENOTDIR, f"{path} is a file where a folder is needed") from error


def _unless_gone(error: OSError) -> None:
    """For `os.walk`, which would pass over a folder that cannot be read: an empty answer is a claim, too."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


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


def _copy(source: Path, target: Path) -> None:
    with source.open("rb") as reader, target.open("wb") as writer:
        shutil.copyfileobj(reader, writer, COPY_CHUNK_BYTES)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
