"""What a fault can see and reach: the job's records and the real processes behind them."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import Random

import psutil

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import FOLDER
from crucible.jobs.job import Attempt, Job
from crucible.local.state import Home, State

_WORKLOADS = {"crucible.training", "crucible.adapter"}


@dataclass
class Scene:
    """The job under attack. `restart_server` and `announce_reclaim` are what only the stage can do."""

    job: Job
    home: Home
    rng: Random
    restart_server: Callable[[], None]
    announce_reclaim: Callable[[float], None]
    """Give the machine's EC2 notice: it will go in so many seconds."""
    steps_to_wait: int = field(default=0)
    """So many steps after its first commit the current attempt is struck; drawn again for each fault."""
    seconds_to_wait: float | None = None
    """The same in seconds, instead: heartbeats, which report steps, come more seldom than some scripts save."""
    reached_step: int = 0
    """The step at which the current attempt was struck, where the drill could see it."""
    _first_commits: dict[int, tuple[int, float]] = field(default_factory=dict)
    """Step of an attempt's first commit and when it was seen, by its number; retention deletes the commit later."""

    @property
    def attempt(self) -> Attempt | None:
        """The newest attempt, if it is under way."""
        attempts = self.job.attempts()
        return attempts[-1] if attempts and attempts[-1].read_outcome() is None else None

    def training(self) -> bool:
        """Whether the current attempt has committed something of its own and gone on for the pause drawn."""
        attempt = self.attempt
        if attempt is None or (start := attempt.read_start()) is None or (beat := attempt.read_heartbeat()) is None:
            return False
        own = [c.step for c in Checkpoints(self.job).list() if c.attempt == attempt.number and c.step > start.step]
        if not own:
            return False
        step, seen = self._first_commits.setdefault(attempt.number, (min(own), time.monotonic()))
        if self.seconds_to_wait is None:
            return beat.step >= step + self.steps_to_wait
        return time.monotonic() >= seen + self.seconds_to_wait

    def moment_of_starting(self) -> float:
        """Seconds from a claim to a moment before the first step, drawn; the early ones, of restoring, are likelier."""
        took = [record.first_step_after_seconds for a in self.job.attempts() if (record := a.read_heartbeat())]
        return (next(filter(None, reversed(took)), None) or 2.0) * self.rng.random() ** 3

    def agent(self) -> psutil.Process | None:
        """The flow-run process that claimed the current attempt."""
        attempt = self.attempt
        claim = attempt.read_claim() if attempt else None
        return _process(claim.pid) if claim else None

    def workload(self) -> psutil.Process | None:
        """The trainer under that agent, or the adapter of a script."""
        agent = self.agent()
        if agent is None:
            return None
        with suppress(psutil.NoSuchProcess):
            return next((p for p in agent.children() if _WORKLOADS & set(p.cmdline())), None)
        return None

    def supervisor(self) -> psutil.Process | None:
        record = self.job.read_newest_supervisor()
        return _process(record.pid) if record else None

    def server(self) -> psutil.Process | None:
        record = State.load(self.home).services.get("server")
        return record.find() if record else None

    def local_checkpoints(self) -> Path:
        """Where the current attempt's workload writes its checkpoints."""
        attempt = self.attempt
        number = attempt.number if attempt else 0
        here = f"{self.job.job_id}-*/attempt-{number:04d}/checkpoints"
        return next((self.home.root / "scratch").glob(here), self.home.root / "none")

    def upload_watch(self) -> Callable[[], bool]:
        """A quick look at whether a checkpoint of the current attempt is on its way to the store."""
        attempt = self.attempt
        suffix = f"attempt-{attempt.number:04d}" if attempt else "none"
        committed: set[str] = set()

        def under_way() -> bool:
            for name in self.job.store.folders(FOLDER):
                if name.endswith(suffix) and name not in committed:
                    if not self.job.store.exists(f"{FOLDER}/{name}/manifest.json"):
                        return True
                    committed.add(name)
            return False

        return under_way


def kill(process: psutil.Process | None, number: signal.Signals = signal.SIGKILL) -> bool:
    """Send the signal; False when the process is gone already."""
    if process is None:
        return False
    try:
        os.kill(process.pid, number)
    except ProcessLookupError:
        return False
    return True


def _process(pid: int) -> psutil.Process | None:
    try:
        return psutil.Process(pid)
    except psutil.NoSuchProcess:
        return None
