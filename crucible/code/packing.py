"""The selected files as one archive, named after its content.

The archive is a tar file with nothing in it that varies: names sorted, no owner, no times, one bit of the mode. Its
sha256 is the package's digest, so that equal content is one object in the store, whoever packs it and when:

    code/<digest>.tar.gz
"""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path

from crucible.code.selection import Selection
from crucible.errors import ConfigError, ObjectExists
from crucible.store import Store

FOLDER = "code"
TRIES = 3
"""How often a file is read again that changed while it was read."""


@dataclass(frozen=True)
class Package:
    """A packed folder."""

    digest: str
    archive: bytes
    """The tar file, compressed."""
    files: int
    bytes: int
    """Of the files, uncompressed."""

    @property
    def key(self) -> str:
        return archive_key(self.digest)

    def upload(self, store: Store) -> bool:
        """Put it into the store unless it is there; whether it was new."""
        store.write_json(f"{FOLDER}/{self.digest}.json", {"files": self.files, "bytes": self.bytes})  # used just now
        if store.exists(self.key):
            return False
        try:
            store.create(self.key, self.archive)
        except ObjectExists:  # the same content, compressed by another version of zlib
            return False
        return True


def archive_key(digest: str) -> str:
    return f"{FOLDER}/{digest}.tar.gz"


def pack(selection: Selection) -> Package:
    """Pack the files. Raises `ConfigError` for one that cannot be read or that keeps changing meanwhile."""
    plain = io.BytesIO()
    total = 0
    with tarfile.open(fileobj=plain, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for name in selection.files:
            entry, content = _read(selection.folder / name, name)
            archive.addfile(entry, io.BytesIO(content))
            total += len(content)
    data = plain.getvalue()
    digest = hashlib.sha256(data).hexdigest()
    return Package(digest, gzip.compress(data, 6, mtime=0), len(selection.files), total)


def _read(path: Path, name: str) -> tuple[tarfile.TarInfo, bytes]:
    entry = tarfile.TarInfo(name)
    try:
        if path.is_symlink():
            entry.type, entry.linkname, entry.mode = tarfile.SYMTYPE, str(path.readlink()), 0o777
            return entry, b""
        content, mode = read_stable(path, name)
    except OSError as error:
        raise ConfigError(f"code: {name} cannot be read: {error.strerror or error}") from error
    entry.size, entry.mode = len(content), 0o755 if mode & 0o100 else 0o644
    return entry, content


def read_stable(path: Path, name: str) -> tuple[bytes, int]:
    """The file's content and mode at one moment. Raises `ConfigError` when it keeps changing, OSError."""
    for _ in range(TRIES):
        with path.open("rb") as file:
            before = os.fstat(file.fileno())
            content = file.read(before.st_size + 1)  # a file that grows as fast as it is read has no end
            after = os.fstat(file.fileno())
        now = path.stat()
        if _same(before, after) and _same(after, now) and len(content) == after.st_size:
            return content, after.st_mode
    raise ConfigError(
        f"code: {name} changes while it is packed; wait until it is written, or name it in .crucibleignore"
    )


def _same(one: os.stat_result, other: os.stat_result) -> bool:
    return (one.st_ino, one.st_size, one.st_mtime_ns) == (other.st_ino, other.st_size, other.st_mtime_ns)
