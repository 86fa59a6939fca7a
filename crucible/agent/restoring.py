"""How an attempt begins: with the newest commit that verifies, and a record of which one that was."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from crucible.agent.observer import Guarded
from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.forking import BEGINNING
from crucible.checkpoints.manifest import Checkpoint
from crucible.checkpoints.restore import restore
from crucible.errors import CheckpointError
from crucible.jobs.job import Attempt
from crucible.jobs.records import ForkedFrom, Start
from crucible.store.retry import persist, wait_at_most


def restore_newest(
    attempt: Attempt, into: Path, observer: Guarded, retry_seconds: float, stopping: Callable[[], bool]
) -> tuple[Checkpoint, Path] | None:
    """Download the newest commit that verifies to a folder below `into`; None when the job has none.

    A failing store is retried for `retry_seconds`, or until `stopping` is true: it is no longer needed. Raises
    `StoreError` when it still fails then, `LocalDiskError` when this machine takes no files, and `FencedOut` when a
    newer attempt has taken over: nothing is recorded then, whatever was found damaged or missing here.
    """
    began = time.monotonic()
    damaged: list[str] = []

    def report(checkpoint: Checkpoint, problem: str) -> None:
        damaged.append(f"{checkpoint.name}: {problem}")
        observer.event("damaged", f"checkpoint of step {checkpoint.step} is damaged and passed over: {problem}")

    def newest() -> tuple[Checkpoint, Path] | None:
        damaged.clear()
        return restore(Checkpoints(attempt.job), into, on_damaged=report)

    pause = wait_at_most(retry_seconds, stopping)
    persist(attempt.close_earlier_starts, pause)
    restored = persist(newest, pause)
    seconds = time.monotonic() - began
    checkpoint, parent = restored[0] if restored else None, persist(attempt.job.read_spec, pause).forked_from
    if checkpoint is None and parent is not None:
        raise CheckpointError(
            f"the checkpoint of step {parent.step} that {attempt.job.job_id} begins at is damaged or gone; fork "
            f"{parent.job} again: `crucible jobs fork {parent.job}`"
        )
    start = Start(
        step=checkpoint.step if checkpoint else 0,
        from_attempt=checkpoint.attempt if checkpoint else None,
        damaged=damaged,
        restore_seconds=round(seconds, 3),
    )
    persist(attempt.require_current, pause)
    persist(lambda: attempt.begin(start), pause)
    persist(attempt.require_current, pause)
    if checkpoint:
        observer.event(
            "restored",
            f"resuming from step {checkpoint.step}, {_origin(checkpoint, parent)} "
            f"({checkpoint.bytes / 1e6:.1f} MB in {seconds:.1f} s)",
            step=checkpoint.step,
        )
    return restored


def _origin(checkpoint: Checkpoint, parent: ForkedFrom | None) -> str:
    if checkpoint.attempt == BEGINNING and parent is not None:
        return f"a copy of what attempt {parent.attempt} of {parent.job} committed"
    return f"committed by attempt {checkpoint.attempt}"
