"""Start and stop trackers' processes, from the process that supervises a job or a sweep."""

from __future__ import annotations

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Any

from pydantic import BaseModel, model_validator

from crucible.home import crucible_home
from crucible.parent_death_guard import guarded
from crucible.trackers.config import TrackerConfig

FINISH_SECONDS = 30.0
"""How long the end of a job waits for its trackers."""


class TrackerRequest(BaseModel):
    """What one tracker's process is to follow."""

    store: dict[str, str | None]
    """The fields of a Store block."""
    tracker: TrackerConfig
    job: str = ""
    sweep: str = ""

    @model_validator(mode="after")
    def _names_one(self) -> TrackerRequest:
        if bool(self.job) == bool(self.sweep):
            raise ValueError("name a job or a sweep")
        return self


class TrackerProcess:
    """One tracker's process. `report` receives what it has to say, in a thread of its own.

    The process dies with the one that started it, so that a job never has two writers.
    """

    def __init__(self, request: TrackerRequest, report: Callable[[str], None]) -> None:
        self.name = request.tracker.name
        self._report = report
        home = crucible_home()
        home.mkdir(parents=True, exist_ok=True)
        with (home / "trackers.log").open("ab") as log:
            self._process = subprocess.Popen(
                guarded([sys.executable, "-m", "crucible.trackers"]),
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                start_new_session=True,  # Ctrl-C in a terminal is for the supervisor; the guard kills its own group
                text=True,
                encoding="utf-8",
            )
        assert self._process.stdin is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(request.model_dump_json() + "\n")
            self._process.stdin.flush()
        self._reader = threading.Thread(target=self._read, name=f"tracker-{self.name}", daemon=True)
        self._reader.start()

    def finish(self) -> None:
        """Ask it to send what is left and leave; does not wait."""
        assert self._process.stdin is not None
        with suppress(OSError):
            self._process.stdin.close()

    def end(self, deadline: float) -> bool:
        """Wait for its end until `deadline` (`time.monotonic`), then kill it; whether it had sent everything."""
        try:
            return self._process.wait(max(0.0, deadline - time.monotonic())) == 0
        except subprocess.TimeoutExpired:
            self._process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(1.0)
            self._process.kill()
            self._process.wait()
            return False
        finally:
            self._reader.join(1.0)

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._report(line.rstrip())


def start_trackers(
    store: Mapping[str, Any],
    trackers: Sequence[TrackerConfig],
    subject: Mapping[str, str],
    report: Callable[[str], None],
) -> list[TrackerProcess]:
    """Start a process for each tracker; one that cannot be started is reported and left out.

    `store`: the fields of its block; `subject`: {"job": id} or {"sweep": id}.
    """
    started = []
    for tracker in trackers:
        try:
            started.append(TrackerProcess(TrackerRequest(store=dict(store), tracker=tracker, **subject), report))
        except OSError as error:
            report(f"{tracker.name} cannot be started: {error}; the training goes on without it")
    return started


def finish_trackers(processes: Sequence[TrackerProcess], seconds: float) -> list[str]:
    """Let them all send what is left, for so many seconds at most; the names of those that could not."""
    for process in processes:
        process.finish()
    deadline = time.monotonic() + seconds
    return [process.name for process in processes if not process.end(deadline)]
