"""Writes checkpoints while training continues: a low-priority process that shares one buffer with the trainer.

A thread would hold Python's lock while it hashes, and compete with the step loop as an equal. A process at nice 5 gets
a third of that, so a save is still durable within seconds when all cores train. It reads and answers one JSON line per
save and ends when its input ends, so it outlives a killed trainer by one save at most.

`python -m crucible.training.writer DESCRIPTOR BYTES` is started by `BackgroundWriter`, never by hand.
"""

from __future__ import annotations

import base64
import json
import mmap
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from crucible.errors import CheckpointError
from crucible.workload.folders import FilePlan, write_folder

__all__ = ["BackgroundWriter"]


class BackgroundWriter:
    """The trainer's end. `buffer` (float32) is filled by the trainer while `busy` is False.

    `gone`: the process has ended, and writes no more.
    The child keeps `lock`, the descriptor that holds the checkpoint folder's lock, open for as long as it may write.
    Raises OSError if the system has no memory to share.
    """

    def __init__(self, floats: int, lock: int | None = None) -> None:
        size = 4 * floats
        descriptor = _shared_memory(size)
        self.buffer: NDArray[np.float32] = np.frombuffer(mmap.mmap(descriptor, size), dtype=np.float32)
        self.buffer.fill(0)  # touch every page now: the first snapshot would otherwise take seven times as long
        self.busy = self.gone = False
        self._process = subprocess.Popen(
            [sys.executable, "-m", "crucible.training.writer", str(descriptor), str(size)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            pass_fds=[descriptor] if lock is None else [descriptor, lock],
        )
        os.close(descriptor)

    def start(self, parent: Path, step: int, files: Sequence[tuple[FilePlan, slice]]) -> None:
        """Begin to write; each file's body is its slice of the buffer, in floats."""
        request = {
            "parent": str(parent),
            "step": step,
            "files": [
                {
                    "name": plan.name,
                    "head": base64.b64encode(plan.head).decode(),
                    "body": [piece.start, piece.stop],
                    "finite": plan.finite,
                }
                for plan, piece in files
            ],
        }
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request).encode() + b"\n")
            self._process.stdin.flush()
        except OSError:
            raise self._gone() from None
        self.busy = True

    def finished(self, *, wait: bool = False) -> int | None:
        """The bytes of the save that has ended, None while it goes on. Raises CheckpointError if it failed."""
        assert self._process.stdout is not None
        if not self.busy or not (wait or select.select([self._process.stdout], [], [], 0)[0]):
            return None
        line = self._process.stdout.readline()
        self.busy = False
        if not line:
            raise self._gone()
        reply: Mapping[str, Any] = json.loads(line)
        if "error" in reply:
            raise CheckpointError(reply["error"])
        return int(reply["bytes"])

    def close(self) -> None:
        """Let the process end, after the save that it may be at."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(OSError):  # it may have ended before it took the last request
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()

    def _gone(self) -> CheckpointError:
        self.busy, self.gone = False, True
        code = self._process.wait()
        return CheckpointError(f"the process that writes checkpoints has ended (exit code {code}); is memory short?")


def _shared_memory(size: int) -> int:
    """A descriptor of memory that a child process can map; /dev/shm is too small for it in most containers."""
    if hasattr(os, "memfd_create"):
        descriptor = os.memfd_create("crucible-checkpoint")
    else:
        handle, name = tempfile.mkstemp()
        os.unlink(name)  # noqa: PTH108 (a name from mkstemp)
        descriptor = handle
    os.ftruncate(descriptor, size)
    return descriptor


def _serve(descriptor: int, size: int) -> None:
    # Signals for the job go to the whole group; the trainer decides what becomes of the save in hand.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(5)
    shared = memoryview(mmap.mmap(descriptor, size, prot=mmap.PROT_READ))
    for line in sys.stdin.buffer:
        request = json.loads(line)
        files = [
            FilePlan(
                name=entry["name"],
                head=base64.b64decode(entry["head"]),
                bodies=(shared[4 * entry["body"][0] : 4 * entry["body"][1]],),
                finite=entry["finite"],
            )
            for entry in request["files"]
        ]
        try:
            reply: dict[str, Any] = {"bytes": write_folder(Path(request["parent"]), request["step"], files)}
        except CheckpointError as error:
            reply = {"error": str(error)}
        try:
            sys.stdout.write(json.dumps(reply) + "\n")
            sys.stdout.flush()
        except BrokenPipeError:  # the trainer was killed; its checkpoint is whole all the same
            return


if __name__ == "__main__":
    _serve(int(sys.argv[1]), int(sys.argv[2]))
