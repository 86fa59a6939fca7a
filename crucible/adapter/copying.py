"""Copies of checkpoint files: clones where the file system can (btrfs, XFS), else byte by byte.

Never a hard link: a script that overwrites its file in place would change the copy with it.
"""

from __future__ import annotations

import fcntl
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from crucible.contract import PARTIAL_SUFFIX
from crucible.errors import CheckpointError

_FICLONE = 0x40049409
"""Linux: let one file share the blocks of another until either is written to."""


@dataclass(frozen=True)
class Stamp:
    """Changes when a file or anything in a folder does: (relative path, size, mtime in ns, inode) of each file."""

    files: tuple[tuple[str, int, int, int], ...]

    @property
    def bytes(self) -> int:
        return sum(size for _, size, _, _ in self.files)

    @property
    def changed_at(self) -> float:
        """Unix seconds of the newest change."""
        return max((mtime for _, _, mtime, _ in self.files), default=0) / 1e9


def stamp(path: Path) -> Stamp:
    """The stamp of a file, or of all files below a folder; links are followed.

    Raises OSError when something vanishes meanwhile, `CheckpointError` for what cannot be carried, by name.
    """
    return Stamp(tuple((name, *_state(file)) for name, file in sorted(files_of(path).items())))


def files_of(path: Path) -> dict[str, Path]:
    """Every file of a file (itself, as "") or folder by its relative path; links are followed.

    Raises `CheckpointError` naming a link to nothing, a link to a folder around it, a FIFO, socket or device.
    """
    if not path.is_dir():
        return {"": _regular(path)}
    found: dict[str, Path] = {}
    for place, _, names in os.walk(path, followlinks=True):
        here = Path(place)
        if here.is_symlink() and here.parent.resolve().is_relative_to(here.resolve()):
            raise CheckpointError(f"{here} is a link to a folder that contains it; remove the link")
        found |= {str((here / name).relative_to(path)): _regular(here / name) for name in names}
    return found


def copy(source: Path, target: Path) -> None:
    """Copy a file, or a folder with all that its links point to. Raises OSError and `CheckpointError`."""
    for name, file in files_of(source).items():
        to = target / name if name else target
        to.parent.mkdir(parents=True, exist_ok=True)
        _copy_file(file, to)


def put(source: Path, target: Path) -> None:
    """Copy to `target`, which is never seen half written and replaces what is there. Raises OSError."""
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}{PARTIAL_SUFFIX}")
    remove(partial)
    copy(source, partial)
    if target.is_dir() and not target.is_symlink():
        remove(target)
    partial.replace(target)


def remove(path: Path) -> None:
    """Remove a file or folder, if it is there."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _copy_file(source: Path, target: Path) -> None:
    with suppress(OSError), source.open("rb") as data, target.open("wb") as copied:
        fcntl.ioctl(copied.fileno(), _FICLONE, data.fileno())
        shutil.copymode(source, target)
        return
    shutil.copy(source, target)  # another file system, or one that cannot clone


def _state(path: Path) -> tuple[int, int, int]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino


def _regular(path: Path) -> Path:
    if path.is_file():
        return path
    if path.is_symlink() and not path.exists():
        raise CheckpointError(f"{path} is a link to nothing; remove it or make what it points to")
    if not path.exists():
        raise FileNotFoundError(f"{path} vanished")
    raise CheckpointError(f"{path} is neither a file nor a folder; a checkpoint can hold nothing else")
