"""List and download the objects of an s3:// source. Imported only for such sources: needs the aws extra."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from crucible.errors import ConfigError, DataError, SourceUnreachable


@dataclass(frozen=True)
class S3Object:
    """One object: its full key with the bucket, its size in bytes and its ETag."""

    path: str
    size: int
    etag: str


class S3Prefix:
    """The objects at or below `uri`, listed once. Raises DataError when there are none or they cannot be listed."""

    objects: dict[str, S3Object]
    """By name relative to the prefix; a single object by its last part."""

    def __init__(self, uri: str) -> None:
        try:
            import s3fs
        except ImportError as error:
            raise ConfigError(
                f"source: {uri} needs the aws extra; install it with: pip install -c constraints.txt '.[aws]'"
            ) from error
        self.uri = uri
        parts = urlsplit(uri)
        root = "/".join(filter(None, (parts.netloc, parts.path.strip("/"))))
        # A fresh instance reads the environment (endpoint, credentials) as it is now.
        self._s3 = s3fs.S3FileSystem(use_listings_cache=False, skip_instance_cache=True)
        found = _call(uri, lambda: self._s3.find(root, detail=True))
        self.objects = {
            path.removeprefix(root).lstrip("/") or path.rsplit("/", 1)[-1]: S3Object(
                path, int(info["size"]), str(info.get("ETag", "")).strip('"')
            )
            for path, info in found.items()
            if not path.endswith("/")  # a "folder" that some consoles create
        }
        if not self.objects:
            raise DataError(f"source {uri} holds no objects; check bucket and prefix")

    def download(self, names: Sequence[str], paths: Sequence[Path]) -> None:
        """Write the objects to these files, several at a time. Raises DataError."""
        keys = [self.objects[name].path for name in names]
        _call(self.uri, lambda: self._s3.get(keys, [str(path) for path in paths]))


def _call(uri: str, action: Callable[[], Any]) -> Any:
    try:
        return action()
    except FileNotFoundError as error:
        raise DataError(f"source {uri} does not exist; check bucket and prefix") from error
    except PermissionError as error:
        raise DataError(f"source {uri}: access denied ({error}); check the AWS credentials") from error
    except Exception as error:
        if isinstance(error, OSError) or type(error).__module__.startswith(("botocore", "aiobotocore", "aiohttp")):
            raise SourceUnreachable(f"source {uri} cannot be read: {type(error).__name__}: {error}") from error
        raise
