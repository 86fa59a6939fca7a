"""Checkpoints that another library writes and reads: what is added makes them checkpoints of Crucible's."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from crucible.workload.folders import FilePlan, publish_folder
from crucible.workload.session import Session

__all__ = ["PublishingSession"]


class PublishingSession(Session):
    """Saves what `fill` writes into a folder; restoring is the library's business, random generators excepted."""

    fill: Callable[[Path], None]

    def publish(self, step: int, fill: Callable[[Path], None], must: bool) -> None:
        """Make a checkpoint of step `step`; `must`: there will be no later one. Raises CheckpointError."""
        self.fill = fill
        self.reached(step)
        self._save(step, must)

    def _write(self, step: int, small: list[FilePlan]) -> int:
        def fill(folder: Path) -> None:
            self.fill(folder)
            for plan in small:
                (folder / plan.name).write_bytes(plan.head)

        return publish_folder(self.folder, step, fill)

    def _restore(self, folder: Path) -> None:
        """The library is given the folder."""
