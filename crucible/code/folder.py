"""A folder on its way into the store: its code as one package, its data file by file."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from crucible.code.data import DataSet, scan, upload
from crucible.code.packing import Package, pack
from crucible.code.selection import Selection, select
from crucible.jobs.records import CodePackage
from crucible.store import Store


@dataclass(frozen=True)
class PackedFolder:
    """What travels of a folder; nothing of it is in the store yet."""

    selection: Selection
    package: Package
    data: dict[str, DataSet]
    """By path in the folder."""

    @property
    def record(self) -> CodePackage:
        """As a job's record names it."""
        return CodePackage(digest=self.package.digest, data={entry: found.digest for entry, found in self.data.items()})

    def upload(self, store: Store, report: Callable[[str], None] = lambda _: None) -> CodePackage:
        """Put into the store what it does not have yet."""
        for entry, found in self.data.items():
            upload(store, self.selection.folder, entry, found, report)
        self.package.upload(store)
        return self.record


def pack_folder(folder: Path, include: Sequence[str] = (), data: Sequence[str] = ()) -> PackedFolder:
    """Select and pack. Raises `ConfigError` naming what cannot travel."""
    selection = select(folder, include, data)
    datasets = {entry: scan(selection.folder, entry) for entry in data}
    return PackedFolder(selection, pack(selection), datasets)
