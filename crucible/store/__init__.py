"""The object store that everything durable lives in.

base.py      the interface, and the two guarantees that recovery rests on
file.py      a folder on a local or shared file system
s3.py        S3, or anything that speaks its protocol
retry.py     trying again while the store is away
guarantees.py  whether a store keeps them
address.py   from `file://…` or `s3://bucket/prefix` to one of them
"""

from crucible.store.address import (
    STORE_BLOCK,
    default_store_uri,
    existing_store,
    store_at,
    store_of_block,
    store_option,
)
from crucible.store.base import ObjectInfo, Store, UnfinishedUpload
from crucible.store.file import FileStore

__all__ = [
    "STORE_BLOCK",
    "FileStore",
    "ObjectInfo",
    "Store",
    "UnfinishedUpload",
    "default_store_uri",
    "existing_store",
    "store_at",
    "store_of_block",
    "store_option",
]
