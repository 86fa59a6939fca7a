"""Large files that a script reads: carried one by one by their content, each uploaded once.

    data/files/<sha256>        a file's bytes
    data/sets/<digest>.json    what one `data:` entry holds: its files by path

A job's record names, for each path in the working directory, the digest of its set.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pydantic import BaseModel, ConfigDict, Field, field_validator

from crucible.contract import file_sha256
from crucible.errors import ConfigError
from crucible.script_config import inside
from crucible.settings import Digest
from crucible.store import Store

FOLDER = "data"


class DataFile(BaseModel):
    """One file of a set."""

    model_config = ConfigDict(frozen=True)

    path: str
    """Relative to the entry; empty when the entry is this file itself."""
    sha256: Digest
    size: int = Field(ge=0)

    @field_validator("path")
    @classmethod
    def _stays_inside(cls, path: str) -> str:
        return inside("data", path)


class DataSet(BaseModel):
    """What one `data:` entry holds."""

    model_config = ConfigDict(frozen=True)

    files: tuple[DataFile, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(json.dumps(self.model_dump(mode="json"), sort_keys=True).encode()).hexdigest()

    @property
    def bytes(self) -> int:
        return sum(file.size for file in self.files)


def file_key(sha256: str) -> str:
    return f"{FOLDER}/files/{sha256}"


def set_key(digest: str) -> str:
    return f"{FOLDER}/sets/{digest}.json"


def scan(folder: Path, entry: str) -> DataSet:
    """The content of `entry`, a file or folder in `folder`; links are followed. Raises `ConfigError`."""
    root = folder / entry
    if not root.exists():
        raise ConfigError(f"data: there is no {entry} in {folder}")
    try:
        files = [DataFile(path="", **_measure(root, entry))] if root.is_file() else list(_scan_folder(root, entry))
    except OSError as error:
        raise ConfigError(f"data: {error.filename or entry} cannot be read: {error.strerror or error}") from error
    if not files:
        raise ConfigError(f"data: {entry} is an empty folder")
    return DataSet(files=tuple(files))


def upload(
    store: Store, folder: Path, entry: str, found: DataSet, report: Callable[[str], None] = lambda _: None
) -> None:
    """Put into the store what it does not have yet. Raises `ConfigError` for a file that has changed since the scan."""
    store.write_model(set_key(found.digest), found)  # first, and also where it is there: `crucible cleanup` looks at it
    for file in found.files:
        key, path = file_key(file.sha256), folder / entry / file.path
        if store.exists(key):
            continue
        report(f"uploading {Path(entry) / file.path}")
        store.upload(path, key)
        if not _is_still(path, entry, file.sha256):
            store.delete(key)
            raise ConfigError(f"data: {Path(entry) / file.path} changed while it was uploaded; run it again")


def _scan_folder(root: Path, entry: str) -> Iterator[DataFile]:
    for parent, folders, names in os.walk(root, followlinks=True):
        here = Path(parent)
        if here != root and here.is_symlink() and here.parent.resolve().is_relative_to(here.resolve()):
            raise ConfigError(f"data: {entry} links to itself at {parent}")
        folders.sort()
        for name in sorted(names):
            path = Path(parent) / name
            if not path.is_file():
                raise ConfigError(f"data: {path} is neither a file nor a folder, or a link to nothing")
            inside_entry = path.relative_to(root).as_posix()
            if not _is_unicode(inside_entry):
                raise ConfigError(f"data: the name {inside_entry!r} in {entry} is not UTF-8; rename the file")
            yield DataFile(path=inside_entry, **_measure(path, entry))


def _is_still(path: Path, entry: str, sha256: str) -> bool:
    try:
        return _measure(path, entry)["sha256"] == sha256
    except (OSError, ConfigError):  # it is gone, or being written just now
        return False


def _is_unicode(name: str) -> bool:
    """Whether a record can hold the name: on Linux it may be any bytes."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return True


def _measure(path: Path, entry: str) -> dict[str, object]:
    """sha256 and size of the file at one moment."""
    before = path.stat()
    sha256 = file_sha256(path)
    after = path.stat()
    if (before.st_size, before.st_mtime_ns) != (after.st_size, after.st_mtime_ns):
        raise ConfigError(f"data: {path} changes while it is read; wait until {entry} is written")
    return {"sha256": sha256, "size": after.st_size}
