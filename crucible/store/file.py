"""The store as a folder on a local or shared file system."""

from __future__ import annotations

import errno
import os
import shlex
import stat
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from crucible.errors import ObjectExists, ObjectMissing, RecordDamaged, StoreAccessDenied, StoreError, StoreUnavailable
from crucible.home import crucible_home
from crucible.store.base import ObjectInfo, Store, UnfinishedUpload, checked_key, local_disk, whole_file

COPY_CHUNK_BYTES = 8 << 20
"""Read size of file transfers: memory stays bounded whatever the file's size."""


class FileStore(Store):
    """Objects as files below a folder. A file is written beside its place, fsynced, then renamed or linked in.

    Where the file system has no hard links (exFAT, some FUSE ones), create-only writes use O_EXCL instead: still one
    winner, but a reader may see such an object before its bytes are there, so one that is empty is looked at again.
    """

    def __init__(self, root: Path, within: Path | None = None) -> None:
        self.root = root
        self.uri = root.as_uri()
        self._store = within or root

    def read(self, key: str) -> bytes:
        for pause in (*_EMPTY_PAUSES_SECONDS, None):
            with self._failures(key), self._open(key) as file:
                data = file.read()
            if data or pause is None:
                break
            time.sleep(pause)  # it is perhaps just being created without a hard link
        return data

    def write(self, key: str, data: bytes) -> None:
        with self._failures(key, writing=True), self._staged() as staged:
            staged.write_bytes(data)
            self._place(staged, key, os.replace)

    def create(self, key: str, data: bytes) -> None:
        with self._failures(key, writing=True), self._staged() as staged:
            staged.write_bytes(data)
            try:
                self._place(staged, key, _create_from)
            except FileExistsError:
                same = False
                with suppress(FileNotFoundError), self._open(key) as file:  # deleted since: it was there all the same
                    same = file.read() == data
                if not same:
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
                    with _nothing_there():  # deleted by someone else while we walk, or a link to nothing
                        status = path.stat()
                        written_at = datetime.fromtimestamp(status.st_mtime, UTC)
                        found.append(ObjectInfo(path.relative_to(self.root).as_posix(), status.st_size, written_at))
        return sorted(found, key=lambda info: info.key)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with self._failures(key, writing=True), suppress(NotADirectoryError):
            path.unlink(missing_ok=True)
        for parent in path.parents:  # a prefix without objects does not exist; neither should its folder
            if parent == self.root:
                break
            try:
                if [entry.name for entry in os.scandir(parent)] == [_STAGING]:
                    (parent / _STAGING).rmdir()
                parent.rmdir()
            except OSError:
                break

    def upload(self, path: Path, key: str) -> None:
        with local_disk(path):
            source = path.open("rb")
        with source, self._failures(key, writing=True), self._staged() as staged:
            self._sweep_staging()
            with staged.open("wb") as target:
                while chunk := _next_chunk(source, local_disk(path)):
                    target.write(chunk)
            self._place(staged, key, os.replace)

    def download(self, key: str, path: Path) -> None:
        with self._failures(key):
            source = self._open(key)
        with source, whole_file(path) as partial, local_disk(path), partial.open("wb") as target:
            while chunk := _next_chunk(source, self._failures(key)):
                target.write(chunk)

    def unfinished_uploads(self) -> Sequence[UnfinishedUpload]:
        found = []
        with self._failures(""):
            for folder in sorted(self.root.rglob(_STAGING)):
                for path in sorted(folder.iterdir()) if folder.is_dir() else ():
                    with _nothing_there():
                        status = path.stat()
                        began = datetime.fromtimestamp(status.st_mtime, UTC)
                        name = path.relative_to(self.root).as_posix()
                        found.append(UnfinishedUpload(name, status.st_size, began))
        return found

    def abort_upload(self, name: str) -> None:
        if Path(name).parent.name != _STAGING:
            raise ValueError(f"{name} is no unfinished upload")
        with self._failures(name, writing=True):
            self._path(name).unlink(missing_ok=True)

    def child(self, prefix: str) -> FileStore:
        return FileStore(self._path(prefix), self._store)

    def _path(self, key: str) -> Path:
        return self.root / checked_key(key)

    def _open(self, key: str) -> BinaryIO:
        """The object's file. Anything else in its place is damage: whoever opens a FIFO waits for ever."""
        handle = os.open(self._path(key), os.O_RDONLY | os.O_NONBLOCK)
        if not stat.S_ISREG(mode := os.fstat(handle).st_mode):
            os.close(handle)
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            raise RecordDamaged(f"{self.uri}/{key} is no file; move it away")
        return os.fdopen(handle, "rb")

    @contextmanager
    def _staged(self) -> Iterator[Path]:
        """A fresh file to write to, on the same file system as the objects, so that the last move is atomic."""
        staging = self.root / _STAGING
        self._require_place()
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

    def _require_place(self) -> None:
        """A new store is a new folder in one that exists: a mistyped address must not become a store nobody finds."""
        home, parent = crucible_home(), self._store.parent
        if not self._store.exists() and not parent.is_dir() and home not in self._store.parents:
            raise StoreAccessDenied(
                f"store {self._store.as_uri()}: the folder {parent} does not exist; correct the address, or create the "
                f"store with: mkdir -p {shlex.quote(str(self._store))}"
            )

    @contextmanager
    def _failures(self, key: str, writing: bool = False) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise self._store_error(error, key, writing) from error

    def _store_error(self, error: OSError, key: str, writing: bool) -> StoreError:
        what = f"store {self.uri}: {key or 'listing'}"
        if (isinstance(error, FileNotFoundError | NotADirectoryError) or error.errno == errno.ELOOP) and not writing:
            return ObjectMissing(f"{self.uri}/{key} does not exist")
        if isinstance(error, IsADirectoryError):
            return RecordDamaged(f"{self.uri}/{key} is a folder where an object should be; move the folder away")
        if isinstance(error, NotADirectoryError):
            return RecordDamaged(f"{what} cannot be written: {error}; move the file away")
        if isinstance(error, PermissionError) and key and not writing and os.access(self._store, os.R_OK | os.X_OK):
            return RecordDamaged(  # somebody else's, on a shared store: it must not hide what is ours
                f"{self.uri}/{key} cannot be read: {error.strerror}; whoever owns it has to let you: chmod -R a+rX"
            )
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            doing = "written" if writing else "read"
            return StoreAccessDenied(
                f"{what} cannot be {doing}: {error.strerror}; check who owns {self._store} and that it is mounted for "
                f"reading and writing"
            )
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            return StoreUnavailable(f"{what} cannot be written: {error.strerror}; free some space in {self._store}")
        return StoreUnavailable(f"{what} failed: {error.strerror or error}")


_STAGING = ".partial"
_EMPTY_PAUSES_SECONDS = (0.01, 0.05, 0.2)
_NO_LINKS = (errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS)
_ABANDONED_SECONDS = 6 * 3600
_PLACE_TRIES = 100


def _create_from(staged: Path, target: Path) -> None:
    """Put the staged file where none may be yet. Raises `FileExistsError`."""
    try:
        os.link(staged, target)
    except OSError as error:
        if error.errno not in _NO_LINKS:
            raise
        data = staged.read_bytes()
        handle = os.open(target, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666)
        try:
            while data:
                data = data[os.write(handle, data) :]
            os.fsync(handle)
        except OSError:
            with suppress(OSError):  # half an object would be taken for a damaged one
                target.unlink()
            raise
        finally:
            os.close(handle)


def _make_folder(path: Path) -> None:
    """Make the folder; `FileNotFoundError` when one that was there vanished meanwhile."""
    try:
        path.mkdir(parents=True, exist_ok=True)
    except FileExistsError as error:
        if not stat.S_ISDIR(path.stat().st_mode):  # one look: it may vanish, and come back, between two
            raise NotADirectoryError(errno.ENOTDIR, f"{path} is a file where a folder is needed") from error


@contextmanager
def _nothing_there() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if not isinstance(error, FileNotFoundError) and error.errno != errno.ELOOP:
            raise


def _unless_gone(error: OSError) -> None:
    """For `os.walk`, which would pass over a folder that cannot be read: an empty answer is a claim, too."""
    if not isinstance(error, FileNotFoundError | NotADirectoryError):
        raise error


def _next_chunk(source: BinaryIO, failures: AbstractContextManager[None]) -> bytes:
    """The next bytes of a transfer, empty at its end. `failures` says whose a failed read is."""
    with failures:
        return source.read(COPY_CHUNK_BYTES)


def _fsync(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
