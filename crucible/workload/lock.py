"""One writer per checkpoint folder."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from crucible.errors import ConfigError
from crucible.workload.folders import sweep

__all__ = ["lock_folder"]


@contextmanager
def lock_folder(parent: Path, log: Callable[[str], None], timeout_seconds: float = 600.0) -> Iterator[int]:
    """Make this process the only one that writes checkpoints to `parent`, and remove what interrupted saves left.

    The background writer inherits the lock: after a kill, this waits for the save that the writer still works on, for
    at most `timeout_seconds`. Yields the descriptor that holds the lock. Raises ConfigError if another training uses
    the folder.
    """
    parent.mkdir(parents=True, exist_ok=True)
    path = parent / ".lock"
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o644)
    os.set_inheritable(descriptor, True)
    until = time.monotonic() + timeout_seconds
    waiting = False
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            break
        except BlockingIOError:
            owner = path.read_text(encoding="utf-8").strip()
            if (owner.isdigit() and _exists(int(owner))) or time.monotonic() > until:
                os.close(descriptor)
                raise ConfigError(
                    f"another training (process {owner}) writes to {parent}; wait for it or use another folder"
                ) from None
            if not waiting:
                log(f"waiting for the last save of a killed training (process {owner}) in {parent}")
                waiting = True
            time.sleep(0.2)
    os.ftruncate(descriptor, 0)
    os.write(descriptor, f"{os.getpid()}\n".encode())
    for name in sweep(parent):
        log(f"removed {name}, left by an interrupted save")
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _exists(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's
    return True
