"""Puts a checkpoint's files back before the script starts, and keeps what a finished script leaves."""

from __future__ import annotations

import json
import os
import stat
from dataclasses import dataclass
from pathlib import Path

from crucible.adapter.copying import copy, put
from crucible.adapter.steps import FoundStep
from crucible.adapter.taking import FILES, restored_step
from crucible.contract import STATE_FILE
from crucible.errors import ConfigError
from crucible.script_config import CheckpointFiles

MOST_UNNAMED_BYTES = 2 * 1024**3
OUTPUT = "output"
"""Folder of the last checkpoint with the files that are to be kept."""


@dataclass(frozen=True)
class Restored:
    """What was put back."""

    path: str
    """Relative to the working directory."""
    step: FoundStep | None


def restore(folder: Path, cwd: Path, files: CheckpointFiles) -> Restored:
    """Put the files of checkpoint `folder` where the script looks for them.

    Raises `ConfigError` when it is no checkpoint of a script's own files.
    """
    try:
        state = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))
        content = next((folder / FILES).iterdir())
        saved_as = Path(state["saved_as"])
    except (OSError, StopIteration, ValueError, LookupError, TypeError) as error:
        raise ConfigError(
            f"checkpoint: {folder.name} does not hold files that a script saved ({error!r}); was it made with "
            f"another `checkpoint:` setting? Start a new job"
        ) from None
    if saved_as.is_absolute() or ".." in saved_as.parts:
        raise ConfigError(f"checkpoint: {folder.name} says that it was saved as {saved_as}, outside the code folder")
    target = Path(files.restore_to) if files.restore_to else saved_as
    put(content, cwd / target)
    return Restored(target.as_posix(), restored_step(state))


def new_files(cwd: Path, since: float) -> list[str]:
    """The files below `cwd` that were written at or after the Unix time `since`, without caches, sorted.

    None if they are larger than `MOST_UNNAMED_BYTES`: so much is only kept if somebody asks for it.
    """
    found = {}
    for parent, folders, names in os.walk(cwd):
        folders[:] = [name for name in folders if name != "__pycache__" and not name.startswith(".")]
        for path in (Path(parent) / name for name in names):
            status = path.lstat()
            if stat.S_ISREG(status.st_mode) and status.st_mtime >= since:
                found[path.relative_to(cwd).as_posix()] = status.st_size
    return sorted(found) if sum(found.values()) <= MOST_UNNAMED_BYTES else []


def keep_output(patterns: list[str], cwd: Path, into: Path) -> list[str]:
    """Copy what the patterns match to `into`; returns the patterns that match nothing."""
    missing = []
    for pattern in patterns:
        found = sorted(path.relative_to(cwd) for path in cwd.glob(pattern))
        if not found:
            missing.append(pattern)
        for name in found:
            copy(cwd / name, into / name)
    return missing
