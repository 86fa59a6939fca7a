"""Which checkpoints are kept: the newest, the best, and those that a report names."""

from __future__ import annotations

import math
from collections.abc import Sequence

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import FOLDER, MANIFEST, MODELS, Checkpoint, best_checkpoint, step_and_attempt
from crucible.contract import step_name


def retain(checkpoints: Checkpoints, *, keep_last: int = 3) -> Sequence[Checkpoint]:
    """Delete what need not be kept; returns what was deleted.

    Kept are the newest `keep_last` that count, the best by validation loss, and every step that has a model card.
    The manifest goes first, so that no half-deleted checkpoint is ever found.
    """
    counted = checkpoints.list()
    kept = {c.name for c in counted[:keep_last]}
    reported = set(checkpoints.job.store.folders(MODELS))
    kept |= {c.name for c in counted if step_name(c.step) in reported}
    if (best := best_checkpoint(counted)) is not None:
        kept.add(best.name)
    deleted = [c for c in counted if c.name not in kept]
    for checkpoint in deleted:
        checkpoints.delete(checkpoint.name)
    _sweep(checkpoints)
    return deleted


def _sweep(checkpoints: Checkpoints) -> None:
    """Remove what superseded attempts left: uploads without a manifest, and commits that do not count.

    Both are judged by start records alone, which only ever grow: what is dead once is dead for good, however long
    ago the caller, who may be superseded itself, has looked.
    """
    newest_allowed = checkpoints.newest_allowed()
    for name in checkpoints.job.store.folders(FOLDER):
        step, attempt = step_and_attempt(name)
        if step is None or attempt is None or newest_allowed(attempt) == math.inf:
            continue
        if step > newest_allowed(attempt) or not checkpoints.job.store.exists(f"{FOLDER}/{name}/{MANIFEST}"):
            checkpoints.delete(name)
