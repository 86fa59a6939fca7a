"""Finished datasets in a store: `datasets/<digest>/`, each with a `meta.json`, which is written last."""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass

from crucible.datasets.meta import META_FILE, DatasetMeta
from crucible.errors import DataError, ObjectMissing, RecordDamaged
from crucible.store import Store

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class DatasetInfo:
    """A finished dataset in a store. `cached`: it was there before it was asked for."""

    uri: str
    meta: DatasetMeta
    cached: bool

    @property
    def digest(self) -> str:
        return self.meta.digest


def find_dataset(store: Store, digest: str) -> DatasetInfo | None:
    """The finished dataset with this digest, or None."""
    key = f"{prefix_of(digest)}/{META_FILE}"
    try:
        meta = store.read_model(
            key, DatasetMeta, f"delete the folder {prefix_of(digest)} and prepare the dataset again"
        )
    except ObjectMissing:
        return None
    return DatasetInfo(f"{store.uri}/{prefix_of(digest)}", meta, cached=True)


def list_datasets(store: Store, on_damage: Callable[[str], None] = logger.warning) -> list[DatasetInfo]:
    """Every finished dataset of the store; `on_damage` receives a message for each one that cannot be read."""
    found = []
    for digest in store.folders("datasets"):
        try:
            info = find_dataset(store, digest) if digest != "index" else None
        except RecordDamaged as error:
            on_damage(str(error))
            continue
        if info is not None:
            found.append(info)
    return found


def resolve_dataset(store: Store, digest: str) -> DatasetInfo:
    """The finished dataset whose digest begins with `digest`. Raises DataError if there is none or more than one."""
    matches = [info for info in list_datasets(store) if info.digest.startswith(digest)]
    if len(matches) > 1:
        raise DataError(
            f"dataset {digest!r} could be any of {', '.join(info.digest for info in matches)}; give more of its digest"
        )
    if not matches:
        raise DataError(f"dataset {digest!r} is not in {store.uri}; `crucible data ls` shows those that are")
    return matches[0]


def prefix_of(digest: str) -> str:
    """Where the dataset with this digest lies in a store."""
    return f"datasets/{digest}"
