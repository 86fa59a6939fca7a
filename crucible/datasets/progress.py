"""Progress of a long preprocessing step, for progress bars and logs."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True)
class Progress:
    """`done` of `total` bytes of the stage (download, read, tokenize, …); total 0: not known."""

    stage: str
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """The callback that reports nothing."""
