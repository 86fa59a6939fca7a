"""On the machine of an attempt: a fresh copy of the code as the working directory, with its data in place."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import tarfile
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

from crucible.code.data import DataSet, file_key, set_key
from crucible.code.packing import archive_key
from crucible.errors import ConfigError, DataError, ObjectMissing
from crucible.store import Store
from crucible.store.base import local_disk

READ_ONLY = 0o444


def unpack(store: Store, digest: str, folder: Path) -> list[str]:
    """Unpack the package into `folder`, which must not exist yet; returns the files in it.

    Raises `ConfigError` when the store does not have it, `DataError` when it is damaged or would leave the folder.
    """
    try:
        compressed = store.read(archive_key(digest))
    except ObjectMissing:
        raise ConfigError(
            f"code: there is no package {digest[:12]} in {store.uri}; pack it again with crucible run"
        ) from None
    try:
        data = gzip.decompress(compressed)
    except (OSError, EOFError) as error:
        raise _damaged(store, digest, str(error)) from error
    if hashlib.sha256(data).hexdigest() != digest:
        raise _damaged(store, digest, "its content is not what its name says")
    with local_disk(folder):
        folder.mkdir(parents=True)
    try:
        with local_disk(folder), tarfile.open(fileobj=io.BytesIO(data)) as archive:
            archive.extractall(folder, filter="data")
            return archive.getnames()
    except tarfile.TarError as error:
        raise _damaged(store, digest, str(error)) from error


def _damaged(store: Store, digest: str, reason: str) -> DataError:
    return DataError(f"{store.uri}/{archive_key(digest)} is damaged: {reason}; delete it and run crucible run again")


def place_data(store: Store, data: Mapping[str, str], folder: Path, cache: Path) -> None:
    """Put each data set (path in `folder` → digest) in its place. Files come from `cache`, downloaded once.

    Where the file system can, a file is a copy that shares its blocks with the cache, and the script may write to it.
    Elsewhere it is a link to the read-only file in the cache.
    """
    for entry, digest in data.items():
        try:
            found = store.read_model(set_key(digest), DataSet)
        except ObjectMissing:
            raise ConfigError(f"data: {entry} is not in {store.uri} any more; run crucible run again") from None
        for file in found.files:
            cached = _cached(store, file.sha256, file.size, cache)
            target = folder / entry / file.path if file.path else folder / entry
            with local_disk(target):
                target.parent.mkdir(parents=True, exist_ok=True)
                target.unlink(missing_ok=True)
                if not _reflink(cached, target):
                    target.symlink_to(cached)


def _cached(store: Store, sha256: str, size: int, cache: Path) -> Path:
    """The file in the cache, downloaded unless it is there and untouched since its check."""
    path, stamp = cache / sha256, cache / f"{sha256}.json"
    with suppress(OSError, ValueError):
        if json.loads(stamp.read_text()) == _stamp(path):
            return path
    with local_disk(cache):
        cache.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(cache).free
    if size > free:
        raise DataError(
            f"data: {size / 1e6:,.1f} MB do not fit on {cache}, which has {free / 1e6:,.1f} MB free; set CRUCIBLE_HOME "
            "to a folder on another disk"
        )
    with _partial(cache) as partial:
        try:
            store.download(file_key(sha256), partial)
        except ObjectMissing:
            raise DataError(f"{store.uri}/{file_key(sha256)} is missing; run crucible run again") from None
        with local_disk(partial), partial.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise DataError(
                    f"{store.uri}/{file_key(sha256)} is damaged: its content is not what its name says; delete it and "
                    "run crucible run again"
                )
        with local_disk(path):
            partial.chmod(READ_ONLY)
            partial.replace(path)
            stamp.write_text(json.dumps(_stamp(path)))
    return path


@contextmanager
def _partial(cache: Path) -> Iterator[Path]:
    descriptor, name = tempfile.mkstemp(dir=cache, suffix=".partial")
    os.close(descriptor)
    try:
        yield Path(name)
    finally:
        Path(name).unlink(missing_ok=True)


def _stamp(path: Path) -> list[int]:
    """What changes when somebody writes to the file."""
    status = path.stat()
    return [status.st_size, status.st_mtime_ns]


def _reflink(source: Path, target: Path) -> bool:
    """Copy a file so that both share their blocks until one is written to; False where that is not possible."""
    with suppress(ImportError, OSError):
        import fcntl

        clone = 0x40049409  # FICLONE of linux/fs.h
        with source.open("rb") as read, target.open("wb") as write:
            fcntl.ioctl(write.fileno(), clone, read.fileno())
        return True
    target.unlink(missing_ok=True)
    return False
