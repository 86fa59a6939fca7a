"""What an attempt's workload printed, in numbered parts: `attempts/0001/output/000000.log`, …"""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime

from crucible.errors import ObjectMissing
from crucible.store import Store


@dataclass(frozen=True)
class OutputPart:
    """One object of an attempt's output."""

    number: int
    size: int
    at: datetime
    """When it was last written."""


class AttemptOutput:
    """The output of one attempt, in the folder `prefix` of its job's store."""

    def __init__(self, store: Store, prefix: str) -> None:
        self._store, self._prefix = store, prefix

    def write(self, number: int, text: bytes) -> None:
        """Put a part of what the workload printed (whole lines) after those before it; the newest one may grow."""
        self._store.write(self._key(number), text)

    def list_parts(self) -> list[OutputPart]:
        """The parts, in order."""
        found = []
        for info in self._store.list(self._prefix):
            number = info.key.rpartition("/")[2].removesuffix(".log")
            if number.isdigit():
                found.append(OutputPart(int(number), info.size, info.modified))
        return found

    def read_size(self, number: int) -> int | None:
        """Bytes of that part; None before there is one."""
        try:
            return self._store.size(self._key(number))
        except ObjectMissing:
            return None

    def read_part(self, number: int) -> bytes:
        """That part. Raises `ObjectMissing`."""
        return self._store.read(self._key(number))

    def read(self) -> bytes:
        """Everything that the workload printed."""
        return b"".join(self.read_part(part.number) for part in self.list_parts())

    def _key(self, number: int) -> str:
        return f"{self._prefix}/{number:06d}.log"
