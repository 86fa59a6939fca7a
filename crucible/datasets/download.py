"""One file from the web, checked against its sha256 and kept."""

from __future__ import annotations

import hashlib
import ipaddress
import logging
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO
from urllib.parse import urlsplit

import httpx

from crucible.datasets.disk import require_free_space, sweep, writing_to
from crucible.datasets.progress import Progress, ProgressCallback
from crucible.errors import DataError, SourceUnreachable
from crucible.formatting import url_label
from crucible.home import crucible_home

_BLOCK_BYTES = 1 << 20
_MOST_BYTES = 1 << 40
_LOOK_BYTES = 64 << 20
"""How much arrives between two looks at the free space, where the answer does not announce its size."""


def fetch_url(url: str, sha256: str, progress: ProgressCallback) -> Path:
    """The path of the verified file; downloaded on the first call only.

    Follows redirects to https only, and none into a private network. Raises DataError when the file cannot be
    downloaded or is another one. No message and no log line contains the URL's credentials or query.
    """
    folder = crucible_home() / "cache" / "downloads"
    path = folder / sha256
    if path.is_file() and _sha256(path) == sha256:
        return path
    label = url_label(url)
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, "*.partial")
        handle, name = tempfile.mkstemp(dir=folder, suffix=".partial")
    partial = Path(name)
    try:
        with os.fdopen(handle, "wb") as file:
            digest = _download(url, label, file, folder, progress)
        if digest != sha256:
            raise DataError(
                f"{label} has another sha256 than the {sha256} that was given: it is another file; check the address, "
                f"or correct sha256 if you trust the new content"
            )
        partial.replace(path)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        kind = SourceUnreachable if status >= 500 or status in (408, 429) else DataError
        raise kind(f"{label} answered {status} {error.response.reason_phrase}; check the address") from None
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SourceUnreachable(
            f"{label} could not be downloaded ({type(error).__name__}: {error}); check the network, or download it by "
            f"other means and give the file's path as source"
        ) from None
    finally:
        partial.unlink(missing_ok=True)
    return path


def _download(url: str, label: str, file: IO[bytes], folder: Path, progress: ProgressCallback) -> str:
    """Write the file; returns its sha256. Raises DataError, or what httpx raises."""
    digest, done = hashlib.sha256(), 0
    first_is_public = _is_public(urlsplit(url).hostname)

    def check_redirect(request: httpx.Request) -> None:
        if request.url.scheme != "https":
            raise DataError(f"{label} is redirected to {request.url.scheme}://{request.url.host}, which is not https")
        if first_is_public and not _is_public(request.url.host):
            raise DataError(f"{label} is redirected into a private network ({request.url.host}); give that address")

    # Compressed on the way, a small answer could fill the disk before its sha256 is known.
    headers = {"Accept-Encoding": "identity"}
    timeout = httpx.Timeout(60, connect=10)
    with (
        _no_secrets_in_httpx_log(),
        httpx.Client(
            follow_redirects=True, timeout=timeout, headers=headers, event_hooks={"request": [check_redirect]}
        ) as client,
        client.stream("GET", url) as response,
    ):
        response.raise_for_status()
        if response.headers.get("content-encoding", "identity").lower() not in ("", "identity"):
            raise DataError(f"{label} answers with compressed content though it was asked not to; download it yourself")
        total = int(response.headers.get("content-length", 0))
        require_free_space(folder, total, f"downloading {label}")
        for block in response.iter_raw(_BLOCK_BYTES):
            digest.update(block)
            with writing_to(folder):
                file.write(block)
            if done // _LOOK_BYTES < (done + len(block)) // _LOOK_BYTES:
                require_free_space(folder, 2 * _LOOK_BYTES, f"downloading {label}")
            done += len(block)
            if done > (total or _MOST_BYTES):
                raise DataError(f"{label} sends more than the {total or _MOST_BYTES:,} bytes that it may")
            progress(Progress("download", done, total))
    with writing_to(folder):
        file.flush()
    return digest.hexdigest()


def _is_public(host: str | None) -> bool:
    """Whether every address of the host is one of the public internet; a host that is not found has none."""
    try:
        found = socket.getaddrinfo(host, 443, proto=socket.IPPROTO_TCP)
    except (OSError, UnicodeError):
        return True  # connecting will report it
    return all(ipaddress.ip_address(str(address[0]).partition("%")[0]).is_global for *_, address in found)


@contextmanager
def _no_secrets_in_httpx_log() -> Iterator[None]:
    """httpx logs every URL it asks for."""

    def clean(record: logging.LogRecord) -> bool:
        if isinstance(record.args, tuple):
            record.args = tuple(
                url_label(str(value)) if isinstance(value, httpx.URL) else value for value in record.args
            )
        return True

    logger = logging.getLogger("httpx")
    logger.addFilter(clean)
    try:
        yield
    finally:
        logger.removeFilter(clean)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
