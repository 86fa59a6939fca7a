"""From the name of a store, as flow parameters give it, to the store."""

from __future__ import annotations

from typing import Any

from blocks.store import Store as StoreBlock
from crucible.errors import ConfigError
from crucible.store import Store, store_of_block


def open_store(reference: str = "default") -> Store:
    """The store behind a `Store` block's name, or at an address (`file://…`, `s3://…`).

    Raises `ConfigError` when there is no such block.
    """
    return store_of_block(store_settings(reference))


def store_settings(reference: str) -> dict[str, Any]:
    """The fields of the store's block, secrets in plain text, for a process that opens it with `store_of_block`.

    Raises `ConfigError` when there is no such block.
    """
    if "://" in reference or reference.startswith("/"):
        return {"root": reference}
    try:
        block = StoreBlock.load(reference)
    except ValueError as error:
        raise ConfigError(
            f"store: there is no Store block named {reference!r}; `crucible up` makes 'default', or give an address "
            f"such as file:///folder or s3://bucket/prefix"
        ) from error
    assert isinstance(block, StoreBlock)
    return block.settings()
