"""Packages and data that no record of a store names any more.

Equal content is stored once and shared by jobs, so nothing can go with a job: what no job and no sweep names is looked
for instead. Young ones stay, since a run that waits for its worker has no record yet.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from crucible.code.data import FOLDER as DATA
from crucible.code.data import DataSet, set_key
from crucible.code.packing import FOLDER as CODE
from crucible.errors import ObjectMissing
from crucible.store import ObjectInfo, Store

RECORDS = {"jobs": "job.json", "sweeps": "sweep.json"}
_DIGEST = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True)
class Unused:
    """A package, or what one `data:` entry held as far as no other needs it."""

    name: str
    """Where it lies in the store."""
    keys: list[str]
    bytes: int
    used_at: datetime
    """When it was last uploaded, or found there by a run that needed it."""


def find_unused(store: Store, older_than: timedelta) -> list[Unused]:
    """What may go: named by no record, and not used for so long; oldest first.

    A record that cannot be parsed counts as it stands: whatever digest is in its text is kept. Raises `StoreError`, and
    `RecordDamaged` for a data set that is needed and cannot be read.
    """
    limit = datetime.now(UTC) - older_than
    named = _named(store)
    packages: dict[str, list[ObjectInfo]] = {}
    sets: dict[str, ObjectInfo] = {}
    files: dict[str, ObjectInfo] = {}
    for info in [*store.list(CODE), *store.list(DATA)]:
        if match := _DIGEST.search(info.key):
            if info.key.startswith(f"{CODE}/"):
                packages.setdefault(match[0], []).append(info)
            else:
                (sets if info.key.startswith(f"{DATA}/sets/") else files)[match[0]] = info
    found = [
        _unused(f"{CODE}/{digest}", objects)
        for digest, objects in packages.items()
        if digest not in named and _last_used(objects) < limit
    ]
    kept = {digest for digest, info in sets.items() if digest in named or _last_used([info]) >= limit}
    needed = {file.sha256 for digest in kept for file in store.read_model(set_key(digest), DataSet).files}
    found += [_unused(info.key, [info]) for digest, info in sets.items() if digest not in kept]
    found += [
        _unused(info.key, [info])
        for sha256, info in files.items()
        if sha256 not in needed and _last_used([info]) < limit
    ]
    return sorted(found, key=lambda entry: (entry.used_at, entry.name))


def remove(store: Store, unused: Unused) -> None:
    """Delete it. Raises `StoreError`."""
    for key in unused.keys:
        store.delete(key)


def _named(store: Store) -> set[str]:
    return {digest for text in _records(store) for digest in _DIGEST.findall(text)}


def _records(store: Store) -> Iterator[str]:
    for folder, record in RECORDS.items():
        for name in store.folders(folder):
            try:
                yield store.read(f"{folder}/{name}/{record}").decode(errors="replace")
            except ObjectMissing:  # a folder that is no job
                continue


def _unused(name: str, objects: list[ObjectInfo]) -> Unused:
    return Unused(name, [info.key for info in objects], sum(info.size for info in objects), _last_used(objects))


def _last_used(objects: list[ObjectInfo]) -> datetime:
    return max(info.modified for info in objects)
