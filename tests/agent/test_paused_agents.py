"""An agent that is paused (SIGSTOP, a frozen machine) and wakes after its successor harms nothing."""

from __future__ import annotations

import itertools
import json
import os
import signal
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import pytest

from crucible.agent.attempt import run_attempt
from crucible.agent.observer import Guarded
from crucible.agent.plan import Scratch
from crucible.agent.restoring import restore_newest
from crucible.checkpoints.commits import Checkpoints
from crucible.errors import FencedOut
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason
from crucible.store import Store
from tests.agent.harness import LONG_ENOUGH, Recorder, newest, plan, run, scripted
from tests.agent.runner import python
from tests.agent.scripted import weights_after
from tests.checkpoints.committing import commit
from tests.faults.faulty_store import FaultyStore
from tests.faults.small_jobs import claimed, launched, new_job, running

STARTING = ("attempt", "restoring", "preparing", "download")
"""The threads of an agent that work before its workload starts."""


def successor(job: Job, scratch: Path) -> None:
    """Attempt 3 from its claim to the commit of step 70, as an agent on the same machine does it."""
    attempt = claimed(job, 3)
    with Scratch.of(scratch / "scratch", attempt).own():
        restored = restore_newest(attempt, scratch / "resume", Guarded(Recorder(), print), 10.0, lambda: False)
        assert restored is not None
        assert restored[0].step == 60
        commit(attempt, scratch, 70)


def test_paused_at_any_step_of_restoring_and_starting(store: Store, tmp_path: Path) -> None:
    """The successor comes and goes inside every single store operation of the paused agent."""
    for point in itertools.count():
        job, scratch = new_job(store, f"job-{point}"), tmp_path / f"{point}"
        first = running(job, 1)
        for step in (50, 60):
            commit(first, scratch, step)
        launched(job, 2)
        count = itertools.count()
        paused: list[str] = []

        def pause(operation: str, key: str, job: Job = job, count: Iterator[int] = count, at: int = point) -> None:
            starting = threading.current_thread().name.startswith(STARTING)
            if starting and next(count) == at:
                paused.append(f"{operation} {key}")  # noqa: B023
                successor(job, scratch)  # noqa: B023

        sleepy = Job(FaultyStore(store, pause), job.job_id)
        # A paused process writes no heartbeats, so none of them may notice the successor here.
        options = replace(plan(scratch, scripted(steps=0), heartbeat_seconds=60.0), cwd=tmp_path)
        with suppress(FencedOut):  # paused before its claim
            run_attempt(sleepy.attempt(2), options, Recorder())
        for thread in threading.enumerate():  # what the agent gave up may still be at work
            if thread.name in STARTING:
                thread.join(LONG_ENOUGH)
        if not paused:
            assert point > 15
            return
        counted = [c.step for c in Checkpoints(job).list()]
        assert counted == [70, 60, 50], f"paused at touch {point}, before {paused}"


@pytest.mark.parametrize("at", ["download", "create start"])
def test_a_stopped_process_that_wakes_after_its_successor(job: Job, tmp_path: Path, at: str) -> None:
    """With real signals: the whole process stands still, its lock on the scratch folder stays."""
    run(job, 1, tmp_path, steps=12, every=5, at={"12": "kill"})
    launched(job, 2)
    sleepy = python("attempt", job.root.uri, job.job_id, "2", str(tmp_path), json.dumps({"steps": 15, "stop_at": at}))
    _, status = os.waitpid(sleepy.pid, os.WUNTRACED)
    assert os.WIFSTOPPED(status)
    assert run(job, 3, tmp_path, steps=15, every=5).end_reason is EndReason.COMPLETED
    os.kill(sleepy.pid, signal.SIGCONT)
    sleepy.wait(120)
    assert [c.step for c in Checkpoints(job).list()][:2] == [15, 10]
    assert newest(job, tmp_path)[1] == weights_after(15)  # type: ignore[index]
    assert job.attempt(2).read_start() is None
