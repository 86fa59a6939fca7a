"""From the name of a store, as flow parameters give it, to the store."""

from __future__ import annotations

from blocks.store import Store as StoreBlock
from crucible.errors import ConfigError
from crucible.store import Store, store_at


def open_store(reference: str = "default") -> Store:
    """The store behind a `Store` block's name, or at an address (`file://…`, `s3://…`).

    Raises `ConfigError` when there is no such block.
    """
    if "://" in reference or reference.startswith("/"):
        return store_at(reference)
    try:
        block = StoreBlock.load(reference)
    except ValueError as error:
        raise ConfigError(
            f"store: there is no Store block named {reference!r}; `crucible up` makes 'default', or give an address "
            f"such as file:///folder or s3://bucket/prefix"
        ) from error
    assert isinstance(block, StoreBlock)
    return block.open()
