"""The store on S3, or whatever speaks its protocol."""

from __future__ import annotations

import errno
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from crucible.errors import (
    ConfigError,
    CrucibleError,
    LocalDiskError,
    ObjectExists,
    ObjectMissing,
    StoreAccessDenied,
    StoreRefused,
    StoreUnavailable,
)
from crucible.store.base import ObjectInfo, Store, UnfinishedUpload, checked_key, local_disk, whole_file
from crucible.store.guarantees import prove_guarantees

CHECKSUMS_OFF = "AWS_REQUEST_CHECKSUM_CALCULATION=when_required"
"""What makes botocore leave out the checksums that some S3-compatible stores reject."""
_PART_BYTES = 16 << 20
_PARTS_AT_ONCE = 4
"""A file's parts that are in memory during its upload. S3 takes 10,000 of them: files of up to 160 GB."""


class S3Store(Store):
    """Objects below a prefix of an S3 bucket, through s3fs."""

    def __init__(self, bucket: str, prefix: str, options: dict[str, Any]) -> None:
        self.bucket, self.prefix, self._options = bucket, prefix, options
        self.uri = f"s3://{bucket}" + (f"/{prefix}" if prefix else "")
        try:
            import s3fs
        except ImportError as error:
            raise ConfigError(
                f"store: {self.uri} needs the aws extra; install it with: pip install -c constraints.txt '.[aws]'"
            ) from error
        # Listings must always be fresh: other machines write to the same prefix.
        self._s3 = s3fs.S3FileSystem(
            use_listings_cache=False,
            default_cache_type="none",
            config_kwargs={"connect_timeout": 10, "read_timeout": 60, "retries": {"mode": "standard"}},
            **options,
        )

    def read(self, key: str) -> bytes:
        return bytes(self._call(key, lambda: self._s3.cat_file(self._path(key))))

    def write(self, key: str, data: bytes) -> None:
        self._call(key, lambda: self._s3.pipe_file(self._path(key), data))

    def create(self, key: str, data: bytes) -> None:
        try:
            self._call(key, lambda: self._s3.pipe_file(self._path(key), data, mode="create"))
        except ObjectExists:
            with suppress(ObjectMissing):  # deleted since: it was there all the same
                if self.read(key) == data:
                    return
            raise

    def size(self, key: str) -> int:
        info = self._call(key, lambda: self._s3.info(self._path(key)))
        if info["type"] == "directory":
            raise ObjectMissing(f"{self.uri}/{key} does not exist")
        return int(info["size"])

    def folders(self, prefix: str = "") -> list[str]:
        try:
            entries = self._call(prefix, lambda: self._s3.ls(self._path(prefix), detail=True))
        except ObjectMissing:
            return []
        return sorted(entry["name"].rsplit("/", 1)[-1] for entry in entries if entry["type"] == "directory")

    def list(self, prefix: str = "") -> list[ObjectInfo]:
        found = self._call(prefix, lambda: self._s3.find(self._path(prefix) + "/", detail=True))
        root = f"{self.bucket}/{self.prefix}/" if self.prefix else f"{self.bucket}/"
        objects = [
            ObjectInfo(path.removeprefix(root), int(info["size"]), info.get("LastModified") or datetime.now(UTC))
            for path, info in sorted(found.items())
        ]
        # For a name without anything below it, s3fs finds the object of that name.
        return [info for info in objects if info.key != checked_key(prefix)]

    def delete(self, key: str) -> None:
        with suppress(ObjectMissing):
            self._call(key, lambda: self._s3.rm_file(self._path(key)))

    def upload(self, path: Path, key: str) -> None:
        with local_disk(path):
            path.open("rb").close()
        self._call(
            key,
            lambda: self._s3.put_file(
                str(path), self._path(key), chunksize=_PART_BYTES, max_concurrency=_PARTS_AT_ONCE
            ),
        )

    def download(self, key: str, path: Path) -> None:
        with whole_file(path) as partial:
            with local_disk(path):
                partial.touch()  # a disk that takes no file is a different error from a store that does not answer
            self._call(key, lambda: self._s3.get_file(self._path(key), str(partial)))

    def unfinished_uploads(self) -> Sequence[UnfinishedUpload]:
        prefix = f"{self.prefix}/" if self.prefix else ""
        found, wanted = [], {"Bucket": self.bucket, "Prefix": prefix}
        while True:
            page = self._call("", partial(self._s3.call_s3, "list_multipart_uploads", **wanted))
            for upload in page.get("Uploads", []):
                name = f"{upload['UploadId']}:{upload['Key'].removeprefix(prefix)}"
                found.append(UnfinishedUpload(name, 0, upload["Initiated"]))
            if not page.get("IsTruncated"):
                return found
            wanted |= {"KeyMarker": page["NextKeyMarker"], "UploadIdMarker": page["NextUploadIdMarker"]}

    def abort_upload(self, name: str) -> None:
        upload, _, key = name.partition(":")
        where = {"Bucket": self.bucket, "Key": self._path(key).removeprefix(f"{self.bucket}/"), "UploadId": upload}
        with suppress(ObjectMissing):
            self._call(key, lambda: self._s3.call_s3("abort_multipart_upload", **where))

    def link(self, key: str, seconds: float) -> str | None:
        if not 1 <= seconds <= _LONGEST_LINK_SECONDS:
            raise ConfigError("expires: S3 signs links for up to 7 days; give at most 7d")
        return str(self._call(key, lambda: self._s3.sign(self._path(key), expiration=int(seconds))))

    def child(self, prefix: str) -> S3Store:
        return S3Store(self.bucket, "/".join(filter(None, (self.prefix, checked_key(prefix)))), self._options)

    def require_guarantees(self) -> None:
        where = (str(self._options.get("endpoint_url", "")), self.bucket)
        if where not in _proven:  # once a process: it costs five requests
            prove_guarantees(self)
            _proven.add(where)

    def _path(self, key: str) -> str:
        return "/".join(filter(None, (self.bucket, self.prefix, checked_key(key))))

    def _call(self, key: str, action: Callable[[], Any]) -> Any:
        """Run one request and turn s3fs's and botocore's many exceptions into ours, with what to do."""
        try:
            return action()
        except Exception as error:
            if not isinstance(error, OSError) and not type(error).__module__.startswith(_S3_ERROR_MODULES):
                raise
            raise self._our_error(error, key) from error

    def _our_error(self, error: Exception, key: str) -> CrucibleError:
        code, what = _s3_code(error), f"store {self.uri}: {key or 'listing'}"
        if isinstance(error, OSError) and error.errno in _LOCAL_ERRNOS and not code:
            return LocalDiskError(f"{error.filename or key}: {error.strerror}; free some space on this machine's disk")
        if code in ("PreconditionFailed", "412") or (isinstance(error, FileExistsError) and not code):
            return ObjectExists(f"{self.uri}/{key} already exists")
        if code == "NoSuchBucket":
            return StoreAccessDenied(f"store {self.uri}: bucket {self.bucket!r} does not exist; create it first")
        if code in _UNSUPPORTED:
            return StoreRefused(
                f"{what} was refused ({code}: {error}); if this is an S3-compatible store that does not know the "
                f"checksums of newer clients, set {CHECKSUMS_OFF}"
            )
        if isinstance(error, FileNotFoundError):
            return ObjectMissing(f"{self.uri}/{key} does not exist")
        # A HEAD with an expired token gets a bare 400.
        if isinstance(error, PermissionError) or code == "400" or type(error).__name__ in _NO_CREDENTIALS:
            return StoreAccessDenied(
                f"{what}: access denied ({error}); check the credentials and that they have not expired"
            )
        return StoreUnavailable(f"{what} failed: {type(error).__name__}: {error}")


def _s3_code(error: BaseException | None) -> str:
    """The server's own error code, `NoSuchBucket` or a bare status, from what s3fs made of the answer; or nothing."""
    while error is not None and not isinstance(error, CrucibleError):  # that was the answer to an earlier request
        response = getattr(error, "response", None)
        if isinstance(response, dict):
            return str(response.get("Error", {}).get("Code", ""))
        error = error.__cause__ or error.__context__
    return ""


_LONGEST_LINK_SECONDS = 7 * 24 * 3600
_proven: set[tuple[str, str]] = set()
"""Endpoints and buckets that have kept their promises in this process."""
_S3_ERROR_MODULES = ("botocore", "aiobotocore", "aiohttp", "asyncio")
_LOCAL_ERRNOS = frozenset({errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS, errno.EMFILE})
_UNSUPPORTED = frozenset(
    {"NotImplemented", "XAmzContentSHA256Mismatch", "XAmzContentChecksumMismatch", "InvalidRequest"}
)
_NO_CREDENTIALS = frozenset({"NoCredentialsError", "PartialCredentialsError", "ProfileNotFound", "TokenRetrievalError"})
