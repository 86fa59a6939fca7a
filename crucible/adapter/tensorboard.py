"""Scalars from TensorBoard's event files, without TensorBoard.

An event file is a sequence of records: length (8 bytes, little-endian), its checksum (4), data, checksum (4). The data
is a protocol buffer: `Event {step = 2; summary = 5 {value = 1 {tag = 1; simple_value = 2; tensor = 8}}}`, of which
nothing else is needed. Source: tensorflow/core/util/event.proto, summary.proto and tensor.proto.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

_LONGEST_RECORD = 64_000_000
_FLOAT, _DOUBLE = 1, 2

Scalar = tuple[int, str, float]
"""Step, tag, value."""


class EventFiles:
    """Follows the event files below a folder."""

    def __init__(self, cwd: Path, pattern: str) -> None:
        self._cwd, self._pattern = cwd, pattern
        self._offsets: dict[Path, int] = {}

    def skip(self) -> None:
        """Take what is there as read: each run writes files of its own."""
        for path in self._paths():
            with suppress(OSError):
                self._offsets[path] = path.stat().st_size

    def read_new(self) -> Iterator[Scalar]:
        """Scalars that were added since the last call."""
        for path in self._paths():
            with suppress(OSError), path.open("rb") as file:
                file.seek(self._offsets.get(path, 0))
                while len(head := file.read(12)) == 12:
                    (length,) = struct.unpack("<Q", head[:8])
                    data = file.read(length + 4) if length <= _LONGEST_RECORD else b""
                    if len(data) != length + 4:
                        break  # still being written
                    self._offsets[path] = file.tell()
                    with suppress(ValueError, IndexError, struct.error):
                        yield from _scalars(data[:length])

    def _paths(self) -> Iterator[Path]:
        for place in sorted(self._cwd.glob(self._pattern)):
            yield from sorted(place.rglob("*tfevents*")) if place.is_dir() else [place]


def _scalars(event: bytes) -> Iterator[Scalar]:
    step, summaries = 0, []
    for field, value in _fields(event):
        if field == 2 and isinstance(value, int):
            step = value - (1 << 64) if value >> 63 else value  # an int64
        elif field == 5 and isinstance(value, bytes):
            summaries.append(value)
    for summary in summaries:
        for field, value in _fields(summary):
            if field == 1 and isinstance(value, bytes):
                tag, number = _value(value)
                if number is not None:
                    yield step, tag, number


def _value(message: bytes) -> tuple[str, float | None]:
    tag, number = "", None
    for field, value in _fields(message):
        if field == 1 and isinstance(value, bytes):
            tag = value.decode(errors="replace")
        elif field == 2 and isinstance(value, float):
            number = value
        elif field == 8 and isinstance(value, bytes):
            number = _tensor(value)
    return tag, number


def _tensor(message: bytes) -> float | None:
    """The one number in a tensor of float or double; None for anything else."""
    kind, packed = 0, b""
    for field, value in _fields(message):
        if field == 1 and isinstance(value, int):
            kind = value
        elif field in (4, 5, 6):  # tensor_content, float_val, double_val
            packed = value if isinstance(value, bytes) else b""
            if isinstance(value, float):
                return value
    code, size = {_FLOAT: ("<f", 4), _DOUBLE: ("<d", 8)}.get(kind, ("", -1))
    return float(struct.unpack(code, packed)[0]) if len(packed) == size else None


def _fields(message: bytes) -> Iterator[tuple[int, int | float | bytes]]:
    """Field numbers and values of a protocol buffer."""
    at = 0
    while at < len(message):
        key, at = _varint(message, at)
        field, wire = key >> 3, key & 7
        value: int | float | bytes
        if wire == 0:
            value, at = _varint(message, at)
        elif wire == 1:
            value, at = struct.unpack_from("<d", message, at)[0], at + 8
        elif wire == 5:
            value, at = struct.unpack_from("<f", message, at)[0], at + 4
        elif wire == 2:
            length, at = _varint(message, at)
            value, at = message[at : at + length], at + length
        else:
            raise ValueError(f"wire type {wire}")
        yield field, value


def _varint(message: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = message[at]
        at += 1
        value |= (byte & 0x7F) << shift
        if not byte & 0x80:
            return value, at
        shift += 7
