"""TensorBoard: event files in a store, that any TensorBoard reads. Needs no library.

An object of a store cannot grow, so the newest file is written again with what is added, and a new one begins when it
gets large. To a reader, a file that was written again looks like one that has grown.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from crucible.adapter.tensorboard import EventFiles
from crucible.jobs.metrics import Row
from crucible.store import Store
from crucible.trackers.backends.base import RunEnd
from crucible.trackers.backends.event_files import file_header, scalars
from crucible.trackers.points import shown_metrics

LARGEST_FILE = 1 << 20
"""Bytes after which a new file begins: what is written again stays small."""


class TensorBoardRun:
    """A job's event files, below `folder`."""

    def __init__(self, folder: Store) -> None:
        self._folder = folder
        self.run_id, self.url = "", folder.uri
        self.newest_step: int | None = -1
        self._data, self._number = b"", 0
        names = [info.key for info in folder.list() if "tfevents" in info.key]
        if names:
            self._data = folder.read(names[-1])
            self._number = len(names) - 1
            self.newest_step = newest_step(self._data)

    def send(self, rows: Sequence[Row]) -> None:
        data, number = self._data, self._number
        if len(data) > LARGEST_FILE:
            data, number = b"", number + 1
        data = data or file_header(rows[0].get("time", time.time()))
        data += b"".join(scalars(row.get("time", 0.0), int(row["step"]), shown_metrics(row)) for row in rows)
        self._folder.write(f"events.out.tfevents.{number:010d}.crucible", data)
        self._data, self._number = data, number

    def finish(self, end: RunEnd) -> None:
        """Event files know no end."""

    def close(self) -> None:
        """Nothing is open."""


def newest_step(data: bytes) -> int:
    """The highest step in an event file; -1 where it has none."""
    with tempfile.TemporaryDirectory(prefix="crucible-events-") as folder:
        path = Path(folder, "tfevents")
        path.write_bytes(data)
        return max((step for step, _, _ in EventFiles(path.parent, path.name).read_new()), default=-1)
