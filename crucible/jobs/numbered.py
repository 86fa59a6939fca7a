"""Records that are numbered in the order in which they were made, such as `limits/0001.json`, and never changed.

Jobs and sweeps have them.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Callable, Iterable
from typing import TypeVar

from crucible.errors import ObjectExists, ObjectMissing
from crucible.jobs.records import Record
from crucible.store import Store

R = TypeVar("R", bound=Record)


def record_numbers(store: Store, folder: str) -> list[int]:
    """The numbers of the records `0001.json` … in a folder, ascending; files of other names are not ours."""
    # The first part below the folder: a directory in a record's place is a damaged record, not none.
    keys = {info.key.removeprefix(f"{folder}/").split("/", 1)[0] for info in store.list(folder)}
    return numbers_in(key.removesuffix(".json") for key in keys if key.endswith(".json"))


def numbers_in(names: Iterable[str]) -> list[int]:
    """The numbers among names like `0001`, ascending."""
    return sorted(int(name) for name in names if re.fullmatch(r"[0-9]{4,9}", name) and name == f"{int(name):04d}")


def create_next(store: Store, folder: str, make: Callable[[int], R]) -> R:
    """Put what `make` returns for the next free number into the folder. Racing writers get different numbers."""
    while True:
        number = max(record_numbers(store, folder), default=0) + 1
        record = make(number)
        try:
            store.create_model(f"{folder}/{number:04d}.json", record)
        except ObjectExists:
            continue
        return record


def read_newest(store: Store, folder: str, kind: type[R]) -> R | None:
    """The record with the highest number, or None if there is none. Raises `RecordDamaged`."""
    numbers = record_numbers(store, folder)
    return read_if_there(store, f"{folder}/{numbers[-1]:04d}.json", kind) if numbers else None


def read_if_there(store: Store, key: str, kind: type[R]) -> R | None:
    """The record, or None if there is none. Raises `RecordDamaged`."""
    try:
        return store.read_model(key, kind, kind.fix)
    except ObjectMissing:
        return None


def is_first_start(store: Store, flow_run_id: str) -> bool:
    """Whether the flow run works on this job or sweep for the first time; False when it is brought back after it died.

    What a person changed since its first start, the limits above all, is not to be overwritten by its parameters.
    """
    try:
        store.create_json(f"starts/{flow_run_id or uuid.uuid4().hex}.json", {"token": uuid.uuid4().hex})
    except ObjectExists:
        return False
    return True
