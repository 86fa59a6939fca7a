"""One live line for each part of the local set-up while it starts or stops; plain lines without a terminal."""

from __future__ import annotations

import time
from types import TracebackType

from rich.console import Console
from rich.live import Live
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

FINAL = {"ready", "deployed", "unchanged", "stopped"}


class StatusLines:
    """A context manager; `report(part, status)` changes or adds the part's line."""

    def __init__(self) -> None:
        self._console = Console(stderr=True)
        self._began = time.monotonic()
        self._rows: dict[str, tuple[Spinner | Text, Text]] = {}
        self._live = Live(console=self._console, refresh_per_second=10) if self._console.is_terminal else None

    def __enter__(self) -> StatusLines:
        if self._live:
            self._live.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._live:
            self._live.stop()

    def report(self, part: str, status: str) -> None:
        if status in FINAL:
            mark: Spinner | Text = Text("✓", "green")
            text = Text(f"{status} after {time.monotonic() - self._began:.1f} s", "green")
        else:
            mark, text = Spinner("dots"), Text(status)
        self._rows[part] = (mark, text)
        if self._live:
            table = Table.grid(padding=(0, 2))
            for name, row in self._rows.items():
                table.add_row(row[0], name, row[1])
            self._live.update(table)
        else:
            self._console.print(f"{part}: {text}")
