"""Lets a container's user write to a folder of another user's: a POSIX access control list, as `setfacl` sets it.

An ordinary user's containers run under that user's own id, and need none of this. Root's do not run as root: their user
is let into the folders they share with processes outside, now and for everything that is made there later. The list
is written as the kernel's extended attribute, so that no tool has to be installed.
"""

from __future__ import annotations

import errno
import os
import stat
import struct
from contextlib import suppress
from pathlib import Path

from crucible.errors import ConfigError

_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_VERSION, _NO_ID = 2, 0xFFFFFFFF
_OWNER, _USER, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_ALL = 7
STORE_ENTRIES = frozenset(
    {"jobs", "datasets", "sweeps", "history", "reports", "budgets", "prices", "supervisor-heartbeats", "presence"}
) | {"doctor.txt", "probes", ".partial"}
"""What Crucible puts at the top of a store; `.partial` holds what is being written."""


def share(folder: Path, uid: int) -> None:
    """Let the user `uid` read and write everything in the folder, what is made there later included.

    Quick when it has been done before. Raises `ConfigError` where the file system knows no access control lists.
    """
    folder.mkdir(parents=True, exist_ok=True)
    try:
        if _entry(_USER, _ALL, uid) in _read(folder, _DEFAULT):
            return
        for parent, _, names in os.walk(folder, topdown=False):
            for name in names:
                path = Path(parent, name)
                if not path.is_symlink():
                    with suppress(FileNotFoundError):  # removed, or moved to its place, by a job that goes on meanwhile
                        os.setxattr(path, _ACCESS, _list(path, uid))
            with suppress(FileNotFoundError):
                mine = _list(Path(parent), uid)
                os.setxattr(parent, _ACCESS, mine)
                os.setxattr(parent, _DEFAULT, mine)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise ConfigError(f"{folder} cannot be shared with containers: {error.strerror}") from error
        raise ConfigError(
            f"{folder} cannot be shared with containers, whose user is {uid}: its file system has no access control "
            "lists; run Crucible as an ordinary user, or keep the store in S3"
        ) from error


def require_own(folder: Path, why: str) -> None:
    """Refuse to share a folder that holds anything but a store, or whose parent is missing.

    Raises:
        ConfigError: the user of a container would get access to other files, or the address is mistyped.
    """
    if not folder.parent.is_dir():
        raise ConfigError(f"{why}: {folder.parent} does not exist; create it first, or correct the address")
    if not folder.exists():
        return
    if not folder.is_dir():
        raise ConfigError(f"{why}: {folder} is not a folder")
    foreign = sorted(entry.name for entry in folder.iterdir() if entry.name not in STORE_ENTRIES)
    if foreign:
        raise ConfigError(
            f"{why}: {folder} is neither empty nor a store (it has {', '.join(foreign[:3])}); a container gets access "
            "to all of it, so name a folder of its own"
        )


def _read(path: Path, name: str) -> bytes:
    try:
        return os.getxattr(path, name)
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return b""


def _list(path: Path, uid: int) -> bytes:
    """The list as the kernel stores it: what the mode says, and the same as its owner for `uid`."""
    mode = path.stat().st_mode
    owner, other = (mode >> 6) & _ALL, mode & _ALL
    theirs = _ALL if stat.S_ISDIR(mode) else owner
    group = _group(path, mode)
    entries = [
        _entry(_OWNER, owner),
        _entry(_USER, theirs, uid),
        _entry(_GROUP, group),
        _entry(_MASK, theirs | group),
        _entry(_OTHER, other),
    ]
    return struct.pack("<I", _VERSION) + b"".join(entries)


def _group(path: Path, mode: int) -> int:
    """What the owning group may do; where there is a list already, the mode shows the list's mask in its place."""
    known = _read(path, _ACCESS)
    entries = struct.iter_unpack("<HHI", known[4:])
    return next((permissions for tag, permissions, _ in entries if tag == _GROUP), (mode >> 3) & _ALL)


def _entry(tag: int, permissions: int, id_: int = _NO_ID) -> bytes:
    return struct.pack("<HHI", tag, permissions, id_)
