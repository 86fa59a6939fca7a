"""One file from the web, checked against its sha256 and kept."""

from __future__ import annotations

import hashlib
import os
import tempfile
from pathlib import Path

from crucible.datasets.disk import require_free_space, sweep, writing_to
from crucible.datasets.progress import Progress, ProgressCallback
from crucible.errors import DataError, SourceUnreachable
from crucible.home import crucible_home

_BLOCK_BYTES = 1 << 20


def fetch_url(url: str, sha256: str, progress: ProgressCallback) -> Path:
    """The path of the verified file; downloaded on the first call only.

    Raises DataError when it cannot be got or is another file than it was said to be (the message has both hashes).
    """
    import httpx

    folder = crucible_home() / "cache" / "downloads"
    path = folder / sha256
    if path.is_file() and _sha256(path) == sha256:
        return path
    with writing_to(folder):
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder, "*.partial")
        handle, name = tempfile.mkstemp(dir=folder, suffix=".partial")
    partial, digest, done = Path(name), hashlib.sha256(), 0
    try:
        with (
            os.fdopen(handle, "wb") as file,
            httpx.stream("GET", url, follow_redirects=True, timeout=httpx.Timeout(60, connect=10)) as response,
        ):
            response.raise_for_status()
            # Content-Length counts compressed bytes; then it says nothing of what arrives here.
            total = int(response.headers.get("content-length", 0)) if "content-encoding" not in response.headers else 0
            require_free_space(folder, total, f"downloading {url}")
            for block in response.iter_bytes(_BLOCK_BYTES):
                digest.update(block)
                with writing_to(folder):
                    file.write(block)
                done += len(block)
                progress(Progress("download", done, total))
            with writing_to(folder):
                file.flush()
        if digest.hexdigest() != sha256:
            raise DataError(
                f"{url} has sha256 {digest.hexdigest()}, expected {sha256}: it is another file than it was said to be; "
                f"check the address, or correct sha256 if you trust the new content"
            )
        partial.replace(path)
    except httpx.HTTPStatusError as error:
        status = error.response.status_code
        kind = SourceUnreachable if status >= 500 or status in (408, 429) else DataError
        raise kind(f"{url} answered {status} {error.response.reason_phrase}; check the address") from error
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise SourceUnreachable(
            f"{url} could not be downloaded ({type(error).__name__}: {error}); check the network, or download it by "
            f"other means and give the file's path as source"
        ) from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
