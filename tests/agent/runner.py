"""Attempts and supervisors as processes of their own, to be killed: the smallest pool there is.

    python -m tests.agent.runner attempt   STORE JOB NUMBER SCRATCH OPTIONS
    python -m tests.agent.runner supervise STORE JOB SCRATCH OPTIONS

OPTIONS are those of the scripted workload, as JSON.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from crucible.agent import uploads
from crucible.agent.attempt import run_attempt
from crucible.jobs.job import Job
from crucible.jobs.records import Heartbeat, Launch, Outcome
from crucible.store import store_at
from crucible.supervision.launcher import Hint, PoolSays
from crucible.supervision.retry_policy import Placement, Timeouts
from crucible.supervision.supervisor import Supervision
from tests.agent.harness import Recorder, plan, scripted
from tests.faults.faulty_store import FaultyStore

PROJECT = Path(__file__).parents[2]
QUICK = Timeouts(lost=2.0, ended_and_silent=0.6, first_retry_delay=0.05, poll=0.05)


def python(*arguments: str) -> subprocess.Popen[bytes]:
    """This module in a process, and process group, of its own."""
    command = [sys.executable, "-m", "tests.agent.runner", *arguments]
    return subprocess.Popen(command, cwd=PROJECT, start_new_session=True, stdout=subprocess.DEVNULL)


class ProcessPool:
    """A launcher whose runs are processes. Which attempt is which process stands in files, so that a second supervisor
    finds the runs of the first."""

    def __init__(self, scratch: Path, options: dict[str, Any]) -> None:
        self.scratch, self.options = scratch, options
        self.children: dict[int, subprocess.Popen[bytes]] = {}

    def launch(self, job: Job, launch: Launch) -> None:
        with suppress(FileExistsError):
            self._file(launch).touch(exist_ok=False)
            options = self.options | self.options.get("attempts", {}).get(str(launch.number), {})
            options.pop("attempts", None)
            child = python(
                "attempt", job.root.uri, job.job_id, str(launch.number), str(self.scratch), json.dumps(options)
            )
            self.children[launch.number] = child
            self._file(launch).write_text(str(child.pid))

    def hint(self, job: Job, launch: Launch) -> Hint:
        with suppress(FileNotFoundError, ValueError):
            return Hint(PoolSays.ALIVE if alive(int(self._file(launch).read_text())) else PoolSays.ENDED)
        return Hint(PoolSays.UNKNOWN)

    def retire(self, job: Job, launch: Launch, outcome: Outcome) -> None:
        if outcome.decided_by != "agent":
            with suppress(FileNotFoundError, ValueError, ProcessLookupError):
                os.killpg(int(self._file(launch).read_text()), signal.SIGKILL)

    def pid(self, number: int) -> int:
        return int((self.scratch / f"run-{number}").read_text())

    def _file(self, launch: Launch) -> Path:
        return self.scratch / f"run-{launch.number}"


class Silent:
    """A listener."""

    def changed(self, job: Job, message: str) -> None:
        """Nobody listens."""

    def watched(self, job: Job, heartbeat: Heartbeat | None) -> None:
        """Nobody listens."""


def alive(pid: int) -> bool:
    """Whether the process runs; one that is only waiting to be reaped does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return False
    return state != "Z"


def main(arguments: Sequence[str]) -> None:
    uploads.LOOK_SECONDS = 0.02
    role, store, job_id, *rest = arguments
    job = Job.open(store_at(store), job_id)
    if role == "attempt":
        number, scratch, options = int(rest[0]), Path(rest[1]), json.loads(rest[2])
        if stop_at := options.pop("stop_at", None):
            job = Job(FaultyStore(job.root, functools.partial(_stop_self_at, stop_at)), job_id)
        attempt = job.attempt(number)
        run_attempt(attempt, plan(scratch, scripted(**options), attempt.read_launch()), Recorder())
    else:
        scratch, options = Path(rest[0]), json.loads(rest[1])
        pool = ProcessPool(scratch, options)
        Supervision(job, pool, [Placement("local")], Silent(), timeouts=QUICK).run()


def _stop_self_at(where: str, operation: str, key: str) -> None:
    """SIGSTOP to this process, once, before the store operation that `where` names."""
    if where in f"{operation} {key.rsplit('/', 1)[-1]}" and not _stopped:
        _stopped.append(where)
        os.kill(os.getpid(), signal.SIGSTOP)


_stopped: list[str] = []

if __name__ == "__main__":
    main(sys.argv[1:])
