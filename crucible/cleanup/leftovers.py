"""What killed processes leave: uploads that were never finished, and attempts' folders on this machine."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

from crucible.agent.plan import Scratch
from crucible.cleanup.removal import Kind, Removal
from crucible.store import Store


def unfinished_uploads(store: Store, before: datetime) -> Iterator[Removal]:
    """Parts of objects that nobody finished, begun before that moment."""
    for part in store.unfinished_uploads():
        if part.began < before:
            why = f"begun on {part.began:%Y-%m-%d} and never finished"
            yield Removal(Kind.UPLOADS, part.name, part.bytes, why, partial(_abort, store, part.name))


def _abort(store: Store, name: str) -> bool:
    store.abort_upload(name)
    return True


def abandoned_scratch(scratch: Path, before: datetime) -> Iterator[Removal]:
    """Folders of attempts whose process is gone, last written to before that moment."""
    for folder in sorted(scratch.glob("*/attempt-*")):
        if not folder.is_dir():
            continue
        at = datetime.fromtimestamp(folder.stat().st_mtime, UTC)
        attempt = Scratch(folder)
        if at < before and attempt.is_abandoned():
            size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file() and not file.is_symlink())
            why = f"its process is gone since {at:%Y-%m-%d}"
            yield Removal(Kind.SCRATCH, str(folder), size, why, attempt.remove_if_abandoned)
