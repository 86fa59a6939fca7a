"""The checkpoints of a script that follows the contract by itself: handed on as they are, and counted.

The script gets a folder of its own as CRUCIBLE_CHECKPOINT_DIR. Its finished folders are renamed to where the agent
looks, so that the adapter knows of each one, however soon the agent carries and removes it.
"""

from __future__ import annotations

import os
import shutil
import statistics
import time
from collections import deque
from pathlib import Path

from crucible.adapter.copying import remove
from crucible.adapter.taking import Save
from crucible.contract import finished_folders, step_of

_KEPT = "kept"


class ContractSaves:
    """Hands on what the script saves."""

    def __init__(self, folder: Path, keep: bool) -> None:
        """`keep`: the newest one is needed again, for the output to stand in it."""
        self._folder, self._keep = folder, keep
        self.own = folder / "script"
        self.own.mkdir(exist_ok=True)
        self._intervals: deque[float] = deque(maxlen=5)
        self._saved_at = time.time()
        self.newest: Save | None = None

    @property
    def kept(self) -> Path:
        """A copy of the newest checkpoint, if `keep`."""
        return self._folder / _KEPT

    def look(self, *_: object) -> Save | None:
        """Hand on every folder that is finished; the newest of them, if there is one."""
        found = None
        for folder in finished_folders(self.own):
            step = step_of(folder)
            assert step is not None
            if self._keep:
                remove(self.kept)
                _link_tree(folder, self.kept)
            now = time.time()
            self._intervals.append(now - self._saved_at)
            self._saved_at = now
            target = self._folder / folder.name
            remove(target)
            folder.rename(target)
            found = Save(step, target, folder.name, 0.0, statistics.median(self._intervals))
        self.newest = found or self.newest
        return found


def _link_tree(source: Path, target: Path) -> None:
    """Nobody writes to a finished checkpoint any more, so hard links do, where the file system has them."""
    for place, _, names in os.walk(source):
        to = target / Path(place).relative_to(source)
        to.mkdir(parents=True, exist_ok=True)
        for name in names:
            try:
                os.link(Path(place) / name, to / name, follow_symlinks=False)
            except OSError:
                shutil.copy2(Path(place) / name, to / name, follow_symlinks=False)
