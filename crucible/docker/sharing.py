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
from pathlib import Path

from crucible.errors import ConfigError

_ACCESS, _DEFAULT = "system.posix_acl_access", "system.posix_acl_default"
_VERSION, _NO_ID = 2, 0xFFFFFFFF
_OWNER, _USER, _GROUP, _MASK, _OTHER = 0x01, 0x02, 0x04, 0x10, 0x20
_ALL = 7


def share(folder: Path, uid: int) -> None:
    """Let the user `uid` read and write everything in the folder, what is made there later included.

    Quick when it has been done before. Raises `ConfigError` where the file system knows no access control lists.
    """
    folder.mkdir(parents=True, exist_ok=True)
    wanted = _list(folder.stat().st_mode, uid)
    try:
        if _is_set(folder, wanted):
            return
        for parent, _, names in os.walk(folder, topdown=False):
            for name in names:
                path = Path(parent, name)
                if not path.is_symlink():
                    os.setxattr(path, _ACCESS, _list(path.stat().st_mode, uid))
            mine = _list(Path(parent).stat().st_mode, uid)
            os.setxattr(parent, _ACCESS, mine)
            os.setxattr(parent, _DEFAULT, mine)
    except OSError as error:
        if error.errno != errno.ENOTSUP:
            raise ConfigError(f"{folder} cannot be shared with containers: {error.strerror}") from error
        raise ConfigError(
            f"{folder} cannot be shared with containers, whose user is {uid}: its file system has no access control "
            "lists; run Crucible as an ordinary user, or keep the store in S3"
        ) from error


def _is_set(folder: Path, wanted: bytes) -> bool:
    try:
        return os.getxattr(folder, _DEFAULT) == wanted
    except OSError as error:
        if error.errno != errno.ENODATA:
            raise
        return False


def _list(mode: int, uid: int) -> bytes:
    """The list as the kernel stores it: what `mode` says, and the same as its owner for `uid`."""
    owner, group, other = (mode >> 6) & _ALL, (mode >> 3) & _ALL, mode & _ALL
    theirs = _ALL if stat.S_ISDIR(mode) else owner
    entries = [
        (_OWNER, owner, _NO_ID),
        (_USER, theirs, uid),
        (_GROUP, group, _NO_ID),
        (_MASK, theirs | group, _NO_ID),
        (_OTHER, other, _NO_ID),
    ]
    return struct.pack("<I", _VERSION) + b"".join(struct.pack("<HHI", *entry) for entry in entries)
