"""A container that is really a local process: started, signalled and killed as Docker does it."""

from __future__ import annotations

import os
import signal
import subprocess
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

MARK = "CRUCIBLE_REHEARSAL_CONTAINER"
"""Environment variable by which a container's processes are known, wherever they have gone: stands for its cgroup."""


class Container:
    """The first process of a container and all that came of it; standard output and error go to one log file."""

    def __init__(
        self, name: str, command: Sequence[str], environment: Mapping[str, str], working_directory: Path, log: Path
    ) -> None:
        self.name, self.log = name, log
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("wb") as output:
            self._process = subprocess.Popen(
                list(command),
                env={**environment, MARK: name},
                cwd=working_directory,
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        self._shipped = 0

    @property
    def pid(self) -> int:
        return self._process.pid

    def exit_code(self) -> int | None:
        """As Docker reports it (128 + n for signal n); None while the first process runs. Its end is everyone's end."""
        code = self._process.poll()
        if code is None:
            return None
        self._kill_the_rest()
        return code if code >= 0 else 128 - code

    def ask_to_stop(self) -> None:
        """SIGTERM to the first process alone, as `docker stop` does."""
        if self._process.poll() is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """SIGKILL for everything in the container; none of it is left on return."""
        self._kill_the_rest()
        self._process.wait()

    def freeze(self) -> None:
        """Everything in it stands still, as when its machine is moved."""
        for process in self._members():
            with suppress(psutil.Error):
                process.suspend()

    def thaw(self) -> None:
        """Let a frozen container go on."""
        for process in self._members():
            with suppress(psutil.Error):
                process.resume()

    def new_lines(self) -> list[str]:
        """Whole lines logged since the last call; once the container has ended, also a last unfinished one."""
        with self.log.open("rb") as log:
            log.seek(self._shipped)
            text = log.read()
        end = len(text) if self._process.poll() is not None else text.rfind(b"\n") + 1
        self._shipped += end
        return text[:end].decode(errors="replace").splitlines()

    def _kill_the_rest(self) -> None:
        while members := self._members():
            for process in members:
                try:
                    process.kill()
                except psutil.Error:
                    continue
            psutil.wait_procs([p for p in members if p.pid != self.pid], timeout=1)
            if self._process.poll() is None:
                self._process.wait()

    def _members(self) -> list[psutil.Process]:
        """Living processes that carry the mark, orphans included."""
        needle = f"{MARK}={self.name}".encode()
        members = []
        for entry in Path("/proc").iterdir() if Path("/proc/self/environ").exists() else []:
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                if needle in (entry / "environ").read_bytes().split(b"\0"):
                    process = psutil.Process(int(entry.name))
                    if process.status() != psutil.STATUS_ZOMBIE:
                        members.append(process)
            except (OSError, psutil.Error):
                continue
        return members or self._descendants()

    def _descendants(self) -> list[psutil.Process]:
        """Where there is no /proc (macOS): the process and its children, without those that were orphaned."""
        try:
            first = psutil.Process(self.pid)
            everyone = [first, *first.children(recursive=True)]
            return [process for process in everyone if process.status() != psutil.STATUS_ZOMBIE]
        except psutil.Error:
            return []
