"""Takes the script's checkpoint files: once a file or folder is whole it is copied, and the copy becomes a checkpoint.

    step-00000250/state.json        {"step": 250, "step_source": "printed", "saved_as": "out/ckpt.pt", "val_loss": 2.1}
                  files/ckpt.pt     what the script wrote

Files are found by looking every 0.1 s at size, time and inode. Notifications (inotify) would not spare that: network
file systems send none, and whether a file is whole, and was not rewritten during its copy, has to be checked anyway.
"""

from __future__ import annotations

import json
import shutil
import statistics
import time
from collections import deque
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import psutil

from crucible.adapter.child import being_written
from crucible.adapter.copying import Stamp, copy, files_of, remove, stamp
from crucible.adapter.steps import FoundStep, Steps, StepSource
from crucible.adapter.whole import is_whole
from crucible.contract import PARTIAL_SUFFIX, STATE_FILE, step_name
from crucible.errors import CheckpointError
from crucible.formatting import size as size_text
from crucible.script_config import CheckpointFiles

FILES = "files"
"""Folder of a checkpoint with what the script wrote."""
QUIET_SECONDS = 0.4
"""A file of a format that does not say whether it is whole must not have changed for so long."""
FOLDER_QUIET_SECONDS = 2.0
"""The same for a folder: its files are written one after the other."""
LOOK_SHARE = 20
"""A look that takes a second, at thousands of files, is followed by a pause of twenty."""
COPIES = 3
"""The script's own file, the copy that is on its way to the store, and the one being made."""


@dataclass(frozen=True)
class Save:
    """One save of the script that became a checkpoint."""

    step: int
    folder: Path
    name: str
    """Path of the file or folder in the working directory."""
    copy_seconds: float
    interval_seconds: float | None
    """Between the script's saves, the median of the last few; from its start to its first save before that."""


class Taking:
    """Looks for saves of the script and turns them into checkpoint folders."""

    def __init__(
        self,
        cwd: Path,
        files: CheckpointFiles,
        folder: Path,
        steps: Steps,
        log: Callable[[str], None],
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`folder`: where checkpoints are left for the agent."""
        self._cwd, self._files, self._folder, self._steps, self._log, self._clock = (
            cwd,
            files,
            folder,
            steps,
            log,
            clock,
        )
        self._said: set[str] = set()
        self._done = dict(self._found())  # what was there before the script started is no save of it
        self._seen: dict[Path, tuple[Stamp, float]] = {}
        self._next_look = 0.0
        self._saved_at, self._saves = clock(), 0
        self._intervals: deque[float] = deque(maxlen=5)
        self.newest: Save | None = None

    def look(
        self,
        processes: Callable[[], Iterable[psutil.Process]],
        ended_well: bool | None = None,
        facts: Callable[[], dict[str, float]] = dict,
    ) -> Save | None:
        """The newest save that is whole and was not taken before, taken now.

        `processes`: the script's. `ended_well`: None while it runs; False when it was killed or failed, perhaps in the
        middle of a write. `facts` says what else belongs into the checkpoint's state.
        """
        began = time.monotonic()
        if began < self._next_look and ended_well is None:
            return None
        found = sorted(self._found(), key=lambda entry: entry[1].changed_at, reverse=True)
        self._next_look = began + LOOK_SHARE * (time.monotonic() - began)
        for number, (path, seen) in enumerate(found):
            if self._done.get(path) == seen or not self._ready(path, seen, processes, ended_well):
                continue
            save = self._take(path, seen, facts)
            if save is not None or self._done.get(path) == seen:
                self._done |= dict(found[number:])  # older ones were overtaken
            if save is not None:
                return save
        return None

    def being_saved(self) -> bool:
        """Whether the script seems to be writing a checkpoint just now."""
        return any(self._done.get(path) != seen for path, seen in self._found())

    def next_save_at(self) -> float | None:
        """When the script's next save is expected, in Unix seconds; None before two have been seen."""
        return self._saved_at + statistics.median(self._intervals) if self._intervals else None

    def _found(self) -> list[tuple[Path, Stamp]]:
        found = []
        for path in self._matches():
            if path.name.endswith((PARTIAL_SUFFIX, ".tmp")):
                continue
            try:
                seen = stamp(path)
            except OSError:
                continue  # it vanished, or changes its name just now
            except CheckpointError as error:
                self._say(f"{self._name(path)} cannot be carried: {error}")
                continue
            if seen.files:
                found.append((path, seen))
        return found

    def _matches(self) -> list[Path]:
        try:
            return list(self._cwd.glob(self._files.path))
        except OSError:  # the script removed a folder while it was listed; the next look comes soon
            return []

    def _ready(
        self, path: Path, seen: Stamp, processes: Callable[[], Iterable[psutil.Process]], ended_well: bool | None
    ) -> bool:
        before, since = self._seen.get(path, (None, 0.0))
        now = self._clock()
        if before != seen:
            self._seen[path] = seen, now
            since = now
        quiet = now - since
        try:
            files = files_of(path)
            whole = [is_whole(file) for file in files.values()]
            # Within a folder an empty file is fine.
            half = any(
                verdict is False and file.stat().st_size for verdict, file in zip(whole, files.values(), strict=True)
            )
        except (OSError, CheckpointError):
            return False
        if path.is_dir():
            if half or _trainer_not_done(files):
                return False
        elif whole[0] is not None:
            return whole[0]
        if ended_well is not None:
            return ended_well or quiet >= QUIET_SECONDS
        needed = FOLDER_QUIET_SECONDS if path.is_dir() else QUIET_SECONDS
        if quiet < needed:
            return False
        written = being_written(files.values(), processes())
        return not written if written is not None else quiet >= FOLDER_QUIET_SECONDS

    def _take(self, path: Path, seen: Stamp, facts: Callable[[], dict[str, float]]) -> Save | None:
        name, began = self._name(path), time.monotonic()
        if not self._room_for(name, seen.bytes):
            return None
        partial = self._folder / f"taking{PARTIAL_SUFFIX}"
        remove(partial)
        try:
            copied = partial / FILES / path.name
            copy(path, copied)
            changed = stamp(path) != seen or any(
                is_whole(f) is False and f.stat().st_size for f in files_of(copied).values()
            )
        except FileNotFoundError:
            changed = True
        except (OSError, CheckpointError) as error:
            self._say(f"{name} cannot be copied: {error}")
            changed = True
        if changed:  # the next look tries again
            remove(partial)
            return None
        found = self._steps.step_of(name, copied, seen.changed_at)
        if found is None:
            remove(partial)
            self._done[path] = seen
            return None
        state = {"step": found.step, "step_source": found.source, "saved_as": name, **facts()}
        folder = self._folder / step_name(found.step)
        try:
            (partial / STATE_FILE).write_text(json.dumps(state), encoding="utf-8")
            partial.rename(folder)
        except OSError as error:  # a full disk may have room again later
            self._say(f"{name} cannot be kept: {error}")
            remove(partial)
            return None
        self._measure(seen.changed_at)
        interval = statistics.median(self._intervals) if self._intervals else None
        self.newest = Save(found.step, folder, name, time.monotonic() - began, interval)
        return self.newest

    def _measure(self, changed_at: float) -> None:
        if self._saves == 1:
            self._intervals.clear()  # the first one was measured from the start, which takes its time
        self._saves += 1
        if changed_at > self._saved_at:
            self._intervals.append(changed_at - self._saved_at)
        self._saved_at = max(changed_at, self._saved_at)

    def _room_for(self, name: str, size: int) -> bool:
        free = shutil.disk_usage(self._folder).free
        if free < (COPIES - 1) * size:
            self._say(
                f"{name} has {size_text(size)}, and checkpoints need about {COPIES} times that on the disk of "
                f"{self._folder}, where {size_text(free)} are free; "
                + ("it cannot be copied" if free < 1.05 * size else "the next ones may not fit")
            )
        return free >= 1.05 * size

    def _name(self, path: Path) -> str:
        return path.relative_to(self._cwd).as_posix()

    def _say(self, message: str) -> None:
        if message not in self._said:
            self._said.add(message)
            self._log(message)


def restored_step(state: dict[str, object]) -> FoundStep | None:
    """The step that a checkpoint's state names, and how it was found; None where it names none."""
    step, source = state.get("step"), state.get("step_source")
    if isinstance(step, bool) or not isinstance(step, int):
        return None
    return FoundStep(
        step, StepSource(source) if isinstance(source, str) and source in list(StepSource) else StepSource.FILE
    )


def _trainer_not_done(files: dict[str, Path]) -> bool:
    """Hugging Face's Trainer writes `trainer_state.json` last."""
    folders = {Path(name).parent for name in files if Path(name).name == "training_args.bin"}
    return any(str(folder / "trainer_state.json") not in files for folder in folders)
