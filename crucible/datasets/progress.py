"""Progress of a long preprocessing step, for progress bars and logs."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

from crucible.errors import CrucibleError


@dataclass(frozen=True)
class Progress:
    """`done` of `total` bytes of the stage (download, read, tokenize, …); total 0: not known."""

    stage: str
    done: int
    total: int


ProgressCallback = Callable[[Progress], None]


def silent(progress: Progress) -> None:
    """The callback that reports nothing."""


class PreprocessingStopped(CrucibleError):
    """Whoever wanted the dataset does not want it any more."""


class Stop:
    """Ends preprocessing in other threads: every step that takes more than a moment reports its progress."""

    def __init__(self) -> None:
        self._requested = threading.Event()

    @contextmanager
    def on_error(self) -> Iterator[None]:
        """Stop them when this block is left by an exception, such as the one that a signal raises."""
        try:
            yield
        except BaseException:
            self._requested.set()
            raise

    def watched(self, progress: ProgressCallback) -> ProgressCallback:
        """`progress`, which raises `PreprocessingStopped` once it is time to stop."""

        def report(state: Progress) -> None:
            if self._requested.is_set():
                raise PreprocessingStopped(f"stopped after {state.done:,} of {state.total:,} bytes ({state.stage})")
            progress(state)

        return report
