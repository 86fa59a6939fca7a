"""Local scratch space, and clear errors when it is full or read-only."""

from __future__ import annotations

import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from crucible.errors import DataError
from crucible.home import crucible_home

_ABANDONED_SECONDS = 24 * 3600


@contextmanager
def work_folder() -> Iterator[Path]:
    """A scratch folder under `$CRUCIBLE_HOME/work`, removed at the end.

    Folders that killed processes left there are removed once they are a day old.
    """
    root = crucible_home() / "work"
    with writing_to(root):
        root.mkdir(parents=True, exist_ok=True)
        sweep(root, "*")
        folder = tempfile.TemporaryDirectory(dir=root, prefix="preprocess-", ignore_cleanup_errors=True)
    with folder as name:
        yield Path(name)


def sweep(root: Path, pattern: str) -> None:
    """Remove entries of `root` that nothing has touched for a day: their makers were killed."""
    for entry in root.glob(pattern):
        try:
            abandoned = time.time() - entry.stat().st_mtime > _ABANDONED_SECONDS
        except FileNotFoundError:  # removed by a concurrent sweep
            continue
        if abandoned and entry.is_dir():
            shutil.rmtree(entry, ignore_errors=True)
        elif abandoned:
            entry.unlink(missing_ok=True)


@contextmanager
def writing_to(path: Path) -> Iterator[None]:
    """Turn a full or read-only disk into a DataError with the path, the reason and the fix."""
    try:
        yield
    except OSError as error:
        raise DataError(
            f"cannot write to {path}: {error.strerror or error}; free space there or set CRUCIBLE_HOME to a folder on "
            f"another disk"
        ) from error


def require_free_space(folder: Path, needed: int, what: str) -> None:
    """Raise DataError before a long transfer that cannot fit; `needed` in bytes."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise DataError(
            f"{what} needs {needed / 1e6:,.1f} MB on {folder}, which has {free / 1e6:,.1f} MB free; free space there "
            f"or set CRUCIBLE_HOME to a folder on another disk"
        )
