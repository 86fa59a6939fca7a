"""Run several copies of a command as one data-parallel group on this machine, with one exit code.

torchrun does the same, but ends with 1 when its processes have saved and exited with 75, which an agent has to take for
a failure, and gives them 30 seconds to save. Use torchrun for several machines.
"""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import time
from collections.abc import Sequence
from types import FrameType

from crucible.container import usable_cpus
from crucible.contract import EXIT_DONE, EXIT_SAVED

__all__ = ["launch"]

_LOOK_SECONDS = 0.05


def launch(command: Sequence[str], count: int) -> int:
    """Run `count` copies with torchrun's environment variables, pass signals on, and wait for all.

    If one fails, the others, which would wait for it forever, are killed. Returns the failed one's exit code, else 75
    if any was stopped, else 0.
    """
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    shared = {"WORLD_SIZE": str(count), "LOCAL_WORLD_SIZE": str(count)}
    shared |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    shared["OMP_NUM_THREADS"] = os.environ.get("OMP_NUM_THREADS") or str(max(1, usable_cpus() // count))
    running: list[subprocess.Popen[bytes]] = []
    asked: list[int] = []

    def pass_on(number: int, _frame: FrameType | None) -> None:
        asked.append(number)
        for process in running:
            process.send_signal(number)

    for number in (signal.SIGTERM, signal.SIGINT):  # first, so that none is left behind by one that comes meanwhile
        signal.signal(number, pass_on)
    for rank in range(count):
        environment = {**os.environ, **shared, "RANK": str(rank), "LOCAL_RANK": str(rank)}
        running.append(subprocess.Popen(command, env=environment))
    for missed in list(asked):
        pass_on(missed, None)
    while True:
        codes = [process.poll() for process in running]
        failed = next((code for code in codes if code not in (None, EXIT_DONE, EXIT_SAVED)), None)
        if failed is not None:
            for process in running:
                process.kill()
                process.wait()
            return failed if failed > 0 else 128 - failed  # killed by a signal: as a shell reports it
        if None not in codes:
            return max(code or 0 for code in codes)
        time.sleep(_LOOK_SECONDS)
