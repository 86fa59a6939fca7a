"""Does a store keep the two promises that recovery rests on? Not every S3-compatible one does."""

from __future__ import annotations

import uuid
from contextlib import suppress

from crucible.errors import ObjectExists, StoreError, StoreRefused
from crucible.store.base import Store

FOLDER = "probes"


def prove_guarantees(store: Store) -> None:
    """Write, list and delete one small object. Raises `StoreRefused` naming the promise that the store breaks."""
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
