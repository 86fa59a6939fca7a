"""How an attempt begins: with the newest commit that verifies, and a record of which one that was."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from crucible.agent.observer import Guarded
from crucible.checkpoints.commits import Checkpoint, Checkpoints
from crucible.jobs.job import Attempt
from crucible.jobs.records import Start
from crucible.store.retry import persist, wait_at_most


def restore_newest(
    attempt: Attempt, into: Path, observer: Guarded, patience_seconds: float, stopping: Callable[[], bool]
) -> tuple[Checkpoint, Path] | None:
    """Download the newest commit that verifies to a folder below `into`; None when the job has none.

    A store that fails is asked again for `patience_seconds`, unless `stopping` says that there is no time for it.
    Raises `StoreError` when it still fails then, `FencedOut` when a newer attempt has taken over meanwhile.
    """
    began = time.monotonic()
    damaged: list[str] = []

    def report(checkpoint: Checkpoint, problem: str) -> None:
        damaged.append(f"{checkpoint.name}: {problem}")
        observer.event("damaged", f"checkpoint of step {checkpoint.step} is damaged and passed over: {problem}")

    def restore() -> tuple[Checkpoint, Path] | None:
        damaged.clear()
        return Checkpoints(attempt.job).restore(into, on_damaged=report)

    patience = wait_at_most(patience_seconds)
    restored = persist(restore, lambda delay: stopping() or patience(delay))
    seconds = time.monotonic() - began
    checkpoint = restored[0] if restored else None
    start = Start(
        step=checkpoint.step if checkpoint else 0,
        from_attempt=checkpoint.attempt if checkpoint else None,
        damaged=damaged,
        restore_seconds=round(seconds, 3),
    )
    persist(lambda: attempt.begin(start), patience)
    persist(attempt.require_current, patience)
    if checkpoint:
        observer.event(
            "restored",
            f"resuming from step {checkpoint.step}, committed by attempt {checkpoint.attempt} "
            f"({checkpoint.bytes / 1e6:.1f} MB in {seconds:.1f} s)",
            step=checkpoint.step,
        )
    return restored
