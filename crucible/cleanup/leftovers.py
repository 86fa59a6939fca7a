"""What killed processes leave: uploads that were never finished, and attempts' folders on this machine; and files that
were shared behind a link which has expired."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path

from crucible.agent.plan import Scratch
from crucible.checkpoints.sharing import SHARED
from crucible.cleanup.removal import Kind, Removal
from crucible.store import Store

LONGEST_LINK = timedelta(days=7)
"""S3 signs none for longer."""


def unfinished_uploads(store: Store, before: datetime) -> Iterator[Removal]:
    """Parts of objects that nobody finished, begun before that moment."""
    for part in store.unfinished_uploads():
        if part.began < before:
            why = f"begun on {part.began:%Y-%m-%d} and never finished"
            yield Removal(Kind.UPLOADS, part.name, part.bytes, why, partial(_abort, store, part.name))


def _abort(store: Store, name: str) -> bool:
    store.abort_upload(name)
    return True


def expired_shares(store: Store, at: datetime) -> Iterator[Removal]:
    """Packed models and checkpoints that no link leads to any more."""
    before = at - LONGEST_LINK

    def remove(key: str) -> bool:
        expired = any(info.key == key and info.modified < before for info in store.list(SHARED))
        if expired:
            store.delete(key)
        return expired

    for info in store.list(SHARED):
        if info.modified < before:
            why = f"shared on {info.modified:%Y-%m-%d}; its link has expired"
            yield Removal(Kind.SHARED, info.key, info.size, why, partial(remove, info.key))


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
