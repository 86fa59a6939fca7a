"""Listing and reading the objects of an s3:// source. Imported only when there is one: needs the aws extra."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crucible.datasets.disk import writing_to
from crucible.errors import ConfigError, DataError


@dataclass(frozen=True)
class S3Object:
    """One object: its full key with the bucket, its size in bytes and its ETag."""

    path: str
    size: int
    etag: str


def list_objects(uri: str) -> dict[str, S3Object]:
    """The objects at or below `uri`, by name relative to it. Raises DataError when there are none."""
    parts = urlsplit(uri)
    root = "/".join(filter(None, (parts.netloc, parts.path.strip("/"))))
    system = _file_system(uri)
    found = _call(uri, lambda: system.find(root, detail=True))
    objects = {}
    for path, info in found.items():
        name = path.removeprefix(root).lstrip("/") or path.rsplit("/", 1)[-1]
        if not path.endswith("/"):  # a "folder" some consoles create
            objects[name] = S3Object(path, int(info["size"]), str(info.get("ETag", "")).strip('"'))
    if not objects:
        raise DataError(f"source {uri} holds no objects; check bucket and prefix")
    return objects


def download_object(item: S3Object, path: Path) -> None:
    """Write the object to `path`."""
    uri = f"s3://{item.path}"
    with writing_to(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    system = _file_system(uri)
    _call(uri, lambda: system.get_file(item.path, str(path)))


def _file_system(uri: str) -> Any:
    try:
        import s3fs
    except ImportError as error:
        raise ConfigError(
            f"source: {uri} needs the aws extra; install it with: pip install -c constraints.txt '.[aws]'"
        ) from error
    return s3fs.S3FileSystem(use_listings_cache=False)


def _call(uri: str, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except FileNotFoundError as error:
        raise DataError(f"source {uri} does not exist; check bucket and prefix") from error
    except PermissionError as error:
        raise DataError(f"source {uri}: access denied ({error}); check the AWS credentials") from error
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp")):
            raise DataError(f"source {uri} cannot be read: {type(error).__name__}: {error}") from error
        raise
