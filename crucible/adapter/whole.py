"""Whether a file is whole, by its format; nothing in it is ever executed or unpickled.

`torch.save` writes a zip archive whose directory is the last thing in it, so that a file cut off anywhere has none. Its
checksums cannot be used: torch leaves them out.
"""

from __future__ import annotations

import json
import zipfile
from pathlib import Path

_ZIP = b"PK\x03\x04"
_HDF5 = b"\x89HDF\r\n\x1a\n"
_LONGEST_HEADER = 100_000_000
"""Of a safetensors file, as the format allows it."""


def is_whole(path: Path) -> bool | None:
    """True or False where the format says so, None where it cannot be known. Raises OSError."""
    size = path.stat().st_size
    if size == 0:
        return False
    with path.open("rb") as file:
        start = file.read(96)
    if path.suffix == ".safetensors":
        return _whole_safetensors(path, size)
    if start[:4] == _ZIP:
        return _whole_zip(path)
    if start[:8] == _HDF5:
        return _whole_hdf5(start, size)
    return None


def _whole_zip(path: Path) -> bool:
    """The end record and the directory are there, and every entry that it lists begins where it says."""
    try:
        with zipfile.ZipFile(path) as archive, path.open("rb") as file:
            if not archive.filelist:
                return False
            for entry in archive.filelist:
                file.seek(entry.header_offset)
                if file.read(4) != _ZIP or entry.header_offset + entry.compress_size > archive.start_dir:
                    return False
    except (zipfile.BadZipFile, EOFError, ValueError, NotImplementedError):
        return False
    return True


def _whole_safetensors(path: Path, size: int) -> bool:
    """The header is JSON, and the file is as long as the tensors that it lists."""
    with path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        if not 0 < length <= min(_LONGEST_HEADER, size - 8):
            return False
        try:
            header = json.loads(file.read(length))
            ends = [entry["data_offsets"][1] for name, entry in header.items() if name != "__metadata__"]
        except (ValueError, LookupError, TypeError, AttributeError):
            return False
    return bool(size == 8 + length + max(ends, default=0))


def _whole_hdf5(start: bytes, size: int) -> bool | None:
    """The superblock says where the file ends. HDF5 may hold a file open while its length is already right."""
    versions = {0: 40, 1: 44, 2: 28, 3: 28}
    at = versions.get(start[8]) if len(start) > 8 else None
    if at is None or len(start) < at + 8:
        return False
    end = int.from_bytes(start[at : at + 8], "little")
    return None if end <= size else False
