"""The script's processes, in the process group of the adapter, so that the agent's SIGKILL reaches all of them."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO

import psutil

from crucible.adapter.lines import Line, Lines
from crucible.parent_death_guard import guarded

_SHELLS = {"sh", "bash", "dash", "zsh", "ksh", "ash", "fish", "busybox"}
_WRITING = set("wa+")


class Child:
    """The running script. `on_line` receives what it prints, in a thread of its own."""

    def __init__(
        self, command: Sequence[str], environment: Mapping[str, str], cwd: Path, on_line: Callable[[Line], None]
    ) -> None:
        self._on_line = on_line
        self._asked: list[psutil.Process] = []
        """What else got SIGTERM: it may outlive the shell that started it."""
        self._process = subprocess.Popen(
            guarded(list(command)),
            env={**environment, "PYTHONUNBUFFERED": "1"},
            cwd=cwd,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
        assert self._process.stdout is not None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), daemon=True)
        self._reader.start()

    def running(self) -> bool:
        """Whether the script, or what its shell has started and was asked to stop, still runs."""
        return self._process.poll() is None or any(process.is_running() and _alive(process) for process in self._asked)

    def end(self) -> int:
        """The exit code of a script that no longer runs, once all that it printed has been handled."""
        self._reader.join(timeout=5)  # a process in the background may still hold its output
        return self._process.wait()

    def request_stop(self) -> None:
        """SIGTERM to the script. A shell would die of it and leave what it started: there, each of these gets it."""
        script = self._script()
        if script is not None and _name(script) in _SHELLS:
            self._asked = _children(script)
            for process in self._asked:
                with suppress(psutil.Error):
                    process.terminate()
        with suppress(ProcessLookupError):
            self._process.send_signal(signal.SIGTERM)  # its guard passes it on

    def kill(self) -> None:
        """SIGKILL to the script and to everything below it."""
        while processes := [p for p in self.processes() if _alive(p)]:
            for process in processes:
                with suppress(psutil.Error):
                    process.kill()
            psutil.wait_procs(processes, timeout=5)
            if all(not _alive(process) for process in processes):
                break
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    def processes(self) -> list[psutil.Process]:
        """The script and all that it has started and not let go of."""
        with suppress(psutil.Error):
            return _children(psutil.Process(self._process.pid))
        return []

    def _script(self) -> psutil.Process | None:
        with suppress(psutil.Error):
            return next(iter(psutil.Process(self._process.pid).children()), None)
        return None

    def _read(self, pipe: IO[bytes]) -> None:
        lines = Lines()
        while data := os.read(pipe.fileno(), 1 << 16):
            for line in lines.feed(data):
                self._handle(line)
        for line in lines.end():
            self._handle(line)

    def _handle(self, line: Line) -> None:
        try:
            self._on_line(line)
        except Exception as error:  # noqa: BLE001 - reading goes on: a full pipe would stop the script in its next print
            print(f"[crucible] a printed line could not be handled: {error!r}", flush=True)


def being_written(files: Iterable[Path], processes: Iterable[psutil.Process]) -> bool | None:
    """Whether one of the processes has one of the files open for writing; None where the system does not say."""
    if not psutil.LINUX:
        return None
    wanted = {str(path.resolve()) for path in files}
    for process in processes:
        with suppress(psutil.Error, OSError):
            for opened in process.open_files():
                if opened.path in wanted and _WRITING & set(getattr(opened, "mode", "")):
                    return True
    return False


def _children(process: psutil.Process) -> list[psutil.Process]:
    try:
        return list(process.children(recursive=True))
    except psutil.Error:
        return []


def _name(process: psutil.Process) -> str:
    try:
        return Path(process.exe()).name
    except (psutil.Error, OSError):
        return ""


def _alive(process: psutil.Process) -> bool:
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.Error:
        return False
