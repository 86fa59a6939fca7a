"""A script that runs on this machine, in a container perhaps: its process, its step, its saves as they happen.

It is found by its environment, and its files are seen through its own `/proc` entry, so that a rehearsed cloud or a
Docker container makes no difference. On other systems than Linux it is found on the pool `local` only.
"""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from crucible.adapter.child import being_written
from crucible.adapter.whole import is_whole
from crucible.contract import PARTIAL_SUFFIX, Variable
from crucible.parent_death_guard import guarded
from crucible.script_config import CheckpointFiles

LOOK_SECONDS = 0.0005
"""A save may take no longer than a few milliseconds."""
STOP_SECONDS = 2.0
_TAIL_BYTES = 4096
_GUARD = Path(next(word for word in guarded([]) if word.endswith(".py"))).name
_ADAPTER = "crucible.adapter"


@dataclass(frozen=True)
class RunningScript:
    """The script of an attempt, and the adapter that started it."""

    adapter: psutil.Process
    process: psutil.Process

    @classmethod
    def find(cls, job_id: str, attempt: int) -> RunningScript | None:
        """That of a job's attempt; None when it does not run, or cannot be seen from here."""
        wanted = {Variable.JOB_ID: job_id, Variable.ATTEMPT: str(attempt)}
        for adapter in psutil.process_iter(["cmdline"]):
            words = adapter.info["cmdline"] or []
            if _ADAPTER not in words or any(word.endswith(_GUARD) for word in words):
                continue
            with suppress(psutil.Error, IndexError):
                if wanted.items() <= adapter.environ().items():
                    return cls(adapter, adapter.children()[0].children()[0])  # its guard is between them
        return None

    def reached_step(self) -> int:
        """The newest step on record, 0 before the first."""
        with suppress(psutil.Error, OSError, ValueError, KeyError, IndexError):
            path = self._seen(self.process.environ()[Variable.METRICS_FILE])
            with path.open("rb") as file:
                file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
                lines = file.read().split(b"\n")[:-1]
            return max(int(json.loads(line)["step"]) for line in lines[-10:] if line.startswith(b"{"))
        return 0

    def freeze_in_save(self, files: CheckpointFiles | None, timeout_seconds: float) -> bool:
        """Wait for the script's next save and stop the script (SIGSTOP) in the middle of it.

        False when no save was caught within the time; the script then goes on.
        """
        deadline = time.monotonic() + timeout_seconds
        with suppress(psutil.Error, OSError):
            patterns = self._patterns(files)
            before = dict(_states(patterns))
            while time.monotonic() < deadline:
                for path, state in _states(patterns):
                    if before.get(path) == state:
                        continue
                    self._stop()
                    if self._half_written(path):
                        return True
                    self.process.send_signal(signal.SIGCONT)
                    before[path] = state
                time.sleep(LOOK_SECONDS)
        return False

    def _stop(self) -> None:
        """SIGSTOP; returns once it stands still, which may take it a moment on another core."""
        self.process.send_signal(signal.SIGSTOP)
        deadline = time.monotonic() + STOP_SECONDS
        while self.process.status() != psutil.STATUS_STOPPED and time.monotonic() < deadline:
            time.sleep(LOOK_SECONDS)

    def _patterns(self, files: CheckpointFiles | None) -> list[tuple[Path, str]]:
        """Folder and glob of what changes while the script saves; temporary names beside the final one count."""
        if files is None:  # a script that follows the contract renames a folder
            own = self._seen(self.process.environ()[Variable.CHECKPOINT_DIR])
            return [(own, f"*{PARTIAL_SUFFIX}"), (own, f"*{PARTIAL_SUFFIX}/**/*")]
        cwd = self._seen(self.process.cwd())
        path = Path(files.path)
        name = path.name.strip("*")
        beside = (path.parent / (f"*{name}*" if name else "*")).as_posix()
        return [(cwd, beside), (cwd, f"{beside}/**/*")]

    def _half_written(self, path: Path) -> bool:
        try:
            if path.is_dir():
                return path.name.endswith(PARTIAL_SUFFIX) or not any(path.iterdir())
            whole = is_whole(path)
        except OSError:
            return False
        return bool(being_written([path], [self.process])) if whole is None else not whole

    def _seen(self, path: str) -> Path:
        """A path of the script as this process reaches it."""
        if psutil.LINUX:
            return Path(f"/proc/{self.process.pid}/root{path}")
        return Path(path)


def _states(patterns: list[tuple[Path, str]]) -> Iterator[tuple[Path, tuple[int, int, int]]]:
    for folder, pattern in patterns:
        for path in folder.glob(pattern):
            with suppress(OSError):
                found = path.stat()
                yield path, (found.st_size, found.st_mtime_ns, found.st_ino)
