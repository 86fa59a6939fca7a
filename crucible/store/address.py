"""From an address to a store."""

from __future__ import annotations

import os
import shlex
from collections.abc import Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

from crucible.errors import ConfigError
from crucible.home import crucible_home, local_path
from crucible.store.base import Store
from crucible.store.file import FileStore

STORE_BLOCK = "crucible-store"
"""The slug of the block type that `blocks.store` registers."""


def default_store_uri() -> str:
    """The store used when none is named: `$CRUCIBLE_STORE`, or a folder under `crucible_home()`."""
    return os.environ.get("CRUCIBLE_STORE") or (crucible_home() / "store").as_uri()


def store_option(store: Store) -> str:
    """What a printed command needs besides a job's name to find it in this store: nothing in the default one."""
    return "" if store.uri == store_at(default_store_uri()).uri else f" --store {shlex.quote(store.uri)}"


def store_of_block(data: Mapping[str, Any]) -> Store:
    """The store that the fields of a `Store` block describe; empty ones are left to the machine's own settings."""
    options = {
        "key": data.get("access_key_id"),
        "secret": data.get("secret_access_key"),
        "token": data.get("session_token"),
        "endpoint_url": data.get("endpoint_url"),
        "client_kwargs": {"region_name": data["region"]} if data.get("region") else None,
    }
    return store_at(str(data["root"]), **{name: value for name, value in options.items() if value})


def store_at(uri: str, **options: Any) -> Store:
    """The store at `uri`: a path, `file:///path` or `s3://bucket[/prefix]`; nothing is contacted yet.

    `options` go to s3fs (`key`, `secret`, `token`, `endpoint_url`, `client_kwargs`, …); without them the usual
    AWS environment variables and profiles apply, `AWS_ENDPOINT_URL` included.

    Raises `ConfigError` for any other kind of address, and for s3 when the `aws` extra is not installed.
    """
    parts = urlsplit(uri)
    if parts.scheme in ("", "file"):
        return FileStore(local_path(unquote(parts.path) if parts.scheme else uri, "store"))
    if parts.scheme == "s3" and parts.netloc:
        from crucible.store.s3 import S3Store

        return S3Store(parts.netloc, parts.path.strip("/"), options)
    raise ConfigError(f"store: {uri!r} is not an address Crucible knows; use file:///path or s3://bucket/prefix")


def existing_store(address: str | None) -> Store:
    """The store to read from: the one at `address`, or the default one, which may be empty yet.

    Raises:
        ConfigError: as `store_at`, and for a named folder that is not there: no store is not an empty one.
    """
    if address is None:
        return store_at(default_store_uri())
    store = store_at(address)
    if isinstance(store, FileStore) and not store.root.is_dir():
        what = "is a file" if store.root.exists() else "does not exist"
        raise ConfigError(
            f"store: there is no store at {store.uri}: the folder {what}; give the address of one, file:///path or "
            "s3://bucket/prefix"
        )
    return store
