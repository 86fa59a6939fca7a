"""Does a store keep the promises that recovery rests on? Not every S3-compatible one does, nor every file system."""

from __future__ import annotations

import threading
import uuid
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

from crucible.errors import ObjectExists, ObjectMissing, StoreError, StoreRefused
from crucible.store.base import Store

FOLDER = "probes"
RACERS = 8
REPLACEMENTS = 40
_SIZE = 64 * 1024


def prove_guarantees(store: Store) -> None:
    """Write, list and delete one small object, and in a folder also race for one and replace one.

    Raises `StoreRefused` naming the promise that the store breaks, and what to do instead.
    """
    _prove_create(store)
    if store.uri.startswith("file:"):
        _prove_one_winner(store)
        _prove_whole_replacement(store)


def _prove_create(store: Store) -> None:
    key = f"{FOLDER}/{uuid.uuid4().hex}"
    try:
        store.create(key, b"first")
        with suppress(ObjectExists):
            store.create(key, b"second")
            raise StoreRefused(
                f"store {store.uri} ignores If-None-Match: a second create-only write replaced the first. Two machines "
                f"could then work on the same attempt, so nothing is started; use a store with conditional writes"
            )
        if key not in [info.key for info in store.list(FOLDER)]:
            raise StoreRefused(
                f"store {store.uri} does not list an object that was just written: an attempt could overlook its "
                f"successor, so nothing is started; use a store with consistent listing"
            )
    finally:
        with suppress(StoreError):
            store.delete(key)


def _prove_one_winner(store: Store) -> None:
    """Of several that create the same object at once, exactly one does."""
    key = f"{FOLDER}/{uuid.uuid4().hex}"

    def create(racer: int) -> bool:
        try:
            store.create(key, f"racer {racer}".encode())
        except ObjectExists:
            return False
        return True

    try:
        with ThreadPoolExecutor(RACERS) as threads:
            winners = [racer for racer, won in enumerate(threads.map(create, range(RACERS))) if won]
        if len(winners) != 1 or store.read(key) != f"racer {winners[0]}".encode():
            raise StoreRefused(
                f"store {store.uri}: {len(winners)} writers created the same object at once. Two machines could then "
                f"work on the same attempt, so nothing is started; {_FIX}"
            )
    finally:
        with suppress(StoreError):
            store.delete(key)


def _prove_whole_replacement(store: Store) -> None:
    """An object that is replaced is seen as it was or as it is, never missing or mixed."""
    key = f"{FOLDER}/{uuid.uuid4().hex}"
    whole = (b"a" * _SIZE, b"b" * _SIZE)
    over = threading.Event()

    def look() -> str | None:
        while not over.is_set():
            try:
                if store.read(key) not in whole:
                    return "was seen half-written"
            except ObjectMissing:
                return "was missing for a moment"
        return None

    try:
        store.write(key, whole[0])
        with ThreadPoolExecutor(1) as threads:
            looking = threads.submit(look)
            try:
                for number in range(REPLACEMENTS):
                    store.write(key, whole[number % 2])
            finally:
                over.set()
            seen = looking.result()
        if seen is not None:
            raise StoreRefused(
                f"store {store.uri}: an object {seen} while it was replaced, so renaming is not atomic there. A record "
                f"could be read as damaged, so nothing is started; {_FIX}"
            )
    finally:
        with suppress(StoreError):
            store.delete(key)


_FIX = "use a folder on another file system (NFS, Lustre, a local disk), or S3: CRUCIBLE_STORE=s3://bucket/prefix"
