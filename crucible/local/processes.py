"""Start, recognise and stop processes that outlive the command that started them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import psutil
from pydantic import BaseModel, ConfigDict

CREATED_TOLERANCE_SECONDS = 2.0
"""For records without `start`: there the start time is derived from the boot time, which the clock moves."""


class ProcessRecord(BaseModel):
    """What identifies one process for certain: a pid alone is given to another process after a crash or a reboot."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    pid: int
    created: float
    """Start time in unix seconds, as the operating system reported it then."""
    start: str | None = None
    """`process_start` of the process; None in records of an earlier version and where there is no /proc."""
    command: list[str]
    log: Path

    def find(self) -> psutil.Process | None:
        """The live process, or None if it ended or its pid now belongs to another one."""
        try:
            process = psutil.Process(self.pid)
            command = process.cmdline() or self.command  # Linux shows none yet just after the start of a program
            if self.start is not None:
                same = process_start(self.pid) == self.start
            else:
                same = abs(process.create_time() - self.created) < CREATED_TOLERANCE_SECONDS
        except (psutil.NoSuchProcess, psutil.AccessDenied):  # our own processes can always be read
            return None
        return process if same and command[1:] == self.command[1:] else None


def process_start(pid: int) -> str | None:
    """When a process started, as boot id and clock ticks since that boot: setting the clock does not change it.

    None where there is no /proc (macOS keeps the start time itself, so `created` is stable there). Raises
    `psutil.NoSuchProcess`.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return None
    try:
        status = Path(f"/proc/{pid}/stat").read_text(errors="replace")
    except OSError:
        raise psutil.NoSuchProcess(pid) from None
    ticks = status.rpartition(")")[2].split()[19]  # field 22; the name in brackets may hold spaces
    return f"{boot} {ticks}"


def start_detached(command: Sequence[str], *, log: Path, cwd: Path, env: Mapping[str, str]) -> ProcessRecord:
    """Start `command` in its own session, so that closing the terminal or pressing Ctrl-C does not reach it.

    Output is appended to `log`. Raises OSError if the program cannot be started.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    with log.open("ab") as output, _interruptible():
        child = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            cwd=cwd,
            env=dict(env),
            start_new_session=True,
        )
    threading.Thread(target=child.wait, daemon=True).start()  # reaped when it ends, so it is never seen as a zombie
    return ProcessRecord(
        pid=child.pid,
        created=psutil.Process(child.pid).create_time(),
        start=process_start(child.pid),
        command=list(command),
        log=log,
    )


@contextmanager
def _interruptible() -> Iterator[None]:
    """Give child processes the default handling of SIGINT.

    A script's `crucible up &` runs with SIGINT ignored. Child processes inherit that, and a Prefect worker, which turns
    SIGTERM into SIGINT, could then never be stopped.
    """
    main_thread = threading.current_thread() is threading.main_thread()
    if main_thread and signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
        signal.signal(signal.SIGINT, signal.default_int_handler)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, signal.SIG_IGN)
    else:
        yield


def stop_tree(process: psutil.Process, *, children_first_seconds: float = 0.0, grace_seconds: float = 10.0) -> None:
    """Stop a process and everything it started; on return none of them is left.

    With `children_first_seconds`, descendants get SIGTERM that long before the process itself, so that work in progress
    can be saved while its supervisor is still there. What is left after `grace_seconds` is killed.
    """
    descendants = _children(process)
    if children_first_seconds:
        _signal(descendants, signal.SIGTERM)
        psutil.wait_procs(descendants, timeout=children_first_seconds)
    everyone = {p.pid: p for p in [process, *descendants, *_children(process)]}
    _signal([process], signal.SIGTERM)
    psutil.wait_procs([process], timeout=grace_seconds)
    _, alive = psutil.wait_procs(list(everyone.values()), timeout=0)
    _signal(alive, signal.SIGKILL)
    psutil.wait_procs(alive, timeout=grace_seconds)


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return process.children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _signal(processes: Sequence[psutil.Process], number: signal.Signals) -> None:
    for process in processes:
        try:
            process.send_signal(number)
        except psutil.NoSuchProcess:
            continue


def environment(updates: Mapping[str, str], *, drop: Sequence[str] = ()) -> dict[str, str]:
    """This process's environment with `updates`, without the variables named in `drop`."""
    return {**{key: value for key, value in os.environ.items() if key not in drop}, **updates}
