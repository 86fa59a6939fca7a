"""Kills a process group when the process that started it dies: `parent_death_guard.py PARENT_PID COMMAND…` in between.

Without it, a workload whose agent was killed would go on training for nobody, with all the processes it started
(torchrun's ranks, data loaders), and keep the GPU from the next attempt. Signals are passed on to the command, its exit
code is passed back (128 + number for death by a signal). Run with `python -S -E`: it starts in 10 ms and needs no
library.
"""

import ctypes
import os
import select
import signal
import sys

LOOK_SECONDS = 1.0
PR_SET_PDEATHSIG = 1
PASSED_ON = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP, signal.SIGUSR1, signal.SIGUSR2)


def guarded(command: list[str]) -> list[str]:
    """The command line that runs `command` and kills its process group when the calling process dies."""
    return [sys.executable, "-S", "-E", __file__, str(os.getpid()), *command]


def main(parent: int, command: list[str]) -> int:
    """Run the command until it ends by itself, or until the parent is gone."""
    libc = ctypes.CDLL(None) if sys.platform == "linux" else None
    guard = os.getpid()
    # A signal that comes before there is somebody to pass it on to waits.
    mask = signal.pthread_sigmask(signal.SIG_BLOCK, PASSED_ON)
    child = os.fork()
    if child == 0:
        signal.pthread_sigmask(signal.SIG_SETMASK, mask)
        if libc is not None:  # should the guard itself be killed
            libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL)
        _become(command, guard)
    for number in PASSED_ON:
        signal.signal(number, lambda number, _frame: os.kill(child, number))
    woken, wakes = os.pipe()
    for end in (woken, wakes):
        os.set_blocking(end, False)
    signal.set_wakeup_fd(wakes)
    signal.signal(signal.SIGCHLD, lambda *_: None)
    signal.pthread_sigmask(signal.SIG_SETMASK, mask)
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return code if code >= 0 else 128 - code
        if os.getppid() != parent:
            os.killpg(0, signal.SIGKILL)
        if select.select([woken], [], [], LOOK_SECONDS)[0]:
            os.read(woken, 4096)


def _become(command: list[str], guard: int) -> None:
    if os.getppid() != guard:
        os._exit(1)
    try:
        os.execvp(command[0], command)
    except OSError as error:
        os.write(2, f"cannot start {command[0]!r}: {error.strerror}\n".encode())
        os._exit(127)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
