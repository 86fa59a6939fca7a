"""The files of a local checkpoint folder, and what the workload says about it."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path
from typing import Any

from crucible.contract import STATE_FILE
from crucible.errors import CheckpointError


def checkpoint_files(folder: Path) -> list[Path]:
    """Every file below `folder`, sorted; links to files and folders are followed.

    Raises `CheckpointError` naming what cannot be carried: a link to nothing, a link to a folder around it, a FIFO,
    socket or device.
    """
    found = []
    for place, _, names in os.walk(folder, followlinks=True, onerror=_refuse):
        here = Path(place)
        if here.is_symlink() and here.parent.resolve().is_relative_to(here.resolve()):
            raise CheckpointError(f"{place} is a link to a folder that contains it; remove the link")
        found += [here / name for name in names]
    for path in found:
        _require_file(path)
    return sorted(found)


def _require_file(path: Path) -> None:
    try:
        mode = path.stat().st_mode
    except FileNotFoundError as error:
        what = "is a link to nothing; remove it or make what it points to" if path.is_symlink() else "vanished"
        raise CheckpointError(f"{path} {what}") from error
    if not stat.S_ISREG(mode):
        kinds = {stat.S_IFIFO: "a FIFO", stat.S_IFSOCK: "a socket"}
        kind = kinds.get(stat.S_IFMT(mode), "a device")
        raise CheckpointError(f"{path} is {kind}; a checkpoint can hold files and folders only")


def _refuse(error: OSError) -> None:
    raise CheckpointError(f"{error.filename} cannot be read: {error.strerror}") from error


def workload_state(folder: Path) -> dict[str, Any]:
    """What the workload says of its state, in `state.json`; nothing if there is no such file."""
    try:
        state = json.loads((folder / STATE_FILE).read_text())
    except FileNotFoundError:
        return {}
    except OSError as error:
        raise CheckpointError(f"{folder / STATE_FILE} cannot be read: {error.strerror}") from error
    except (ValueError, RecursionError) as error:
        raise CheckpointError(f"{folder / STATE_FILE} is not valid JSON: {error}") from error
    if not isinstance(state, dict):
        raise CheckpointError(f"{folder / STATE_FILE} must hold a JSON object, not a {type(state).__name__}")
    return state


def stamp(path: Path) -> tuple[int, int, int]:
    """Changes when the file does."""
    try:
        found = path.stat()
    except FileNotFoundError as error:
        raise CheckpointError(f"{path} vanished while it was carried to the store") from error
    return found.st_mtime_ns, found.st_size, found.st_ino
