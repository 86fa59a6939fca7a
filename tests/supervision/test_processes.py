"""A job through the deaths of real processes: workload, agent, supervisor."""

from __future__ import annotations

import json
import os
import signal
import subprocess
from collections.abc import Iterable
from pathlib import Path

import pytest

from crucible.checkpoints.commits import Checkpoints
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, Heartbeat
from crucible.jobs.status import JobState, status_of
from crucible.store import Store
from crucible.supervision.retry_policy import Placement
from crucible.supervision.supervisor import Supervision
from tests.agent.harness import newest
from tests.agent.runner import QUICK, ProcessPool, Silent, alive, python
from tests.agent.scripted import weights_after
from tests.faults.small_jobs import new_job
from tests.waiting import until


@pytest.fixture
def job(store: Store) -> Job:
    return new_job(store)


@pytest.fixture
def scratch(tmp_path: Path) -> Path:
    folder = tmp_path / "pool"
    folder.mkdir()
    return folder


def commits_of(job: Job) -> int:
    newest = next(iter(Checkpoints(job).list()), None)
    return newest.step if newest else 0


def workload_of(agent: int) -> int:
    """The pid of the agent's child."""
    for child in Path(f"/proc/{agent}/task").glob("*/children"):
        if pids := child.read_text().split():
            return int(pids[0])
    return 0


def test_through_kills_of_workload_agent_and_group(job: Job, scratch: Path) -> None:
    """Four deaths; the weights at the end are those of a run that nothing disturbed, and no commit is lost."""
    gate = scratch / "gate"
    options = {
        "steps": 40,
        "every": 4,
        "attempts": {
            "1": {"at": {"9": "kill"}},
            "2": {"at": {"17": f"wait {gate}"}},
            "3": {"at": {"25": f"wait {gate}"}},
            "4": {"at": {"33": f"wait {gate}"}},
        },
    }
    pool = ProcessPool(scratch, options)
    promised: list[int] = []

    def strike(number: int, step: int) -> None:
        until(lambda: commits_of(job) >= step)
        promised.append(commits_of(job))
        agent = pool.pid(number)
        if number == 2:
            os.kill(workload_of(agent), signal.SIGKILL)
        elif number == 3:
            workload = workload_of(agent)
            os.kill(agent, signal.SIGKILL)
            until(lambda: not alive(workload))
        else:
            os.kill(workload_of(agent), signal.SIGKILL)
            os.killpg(agent, signal.SIGKILL)

    class Chaos(Silent):
        def __init__(self) -> None:
            self.struck: set[int] = set()

        def watched(self, job: Job, heartbeat: Heartbeat | None) -> None:
            number = len(job.attempts())
            if heartbeat is not None and number in (2, 3, 4) and number not in self.struck:
                self.struck.add(number)
                strike(number, {2: 16, 3: 24, 4: 32}[number])

    try:
        status = Supervision(job, pool, [Placement("local")], Chaos(), timeouts=QUICK).run()
    finally:
        _end(pool.children.values())
    assert status.state is JobState.COMPLETED, status.reason
    reasons = [outcome.end_reason for attempt in job.attempts() if (outcome := attempt.read_outcome())]
    assert reasons == [EndReason.KILLED, EndReason.KILLED, EndReason.LOST, EndReason.LOST, EndReason.COMPLETED]
    starts = [start.step for attempt in job.attempts() if (start := attempt.read_start())]
    assert starts == [0, 8, 16, 24, 32]
    assert promised == [16, 24, 32]
    assert newest(job, scratch)[1] == weights_after(40)  # type: ignore[index]


def test_a_killed_supervisor_is_followed_by_one_that_finds_its_attempt(job: Job, scratch: Path) -> None:
    options = {"steps": 12, "every": 4, "at": {"9": f"wait {scratch}/gate"}}
    arguments = ("supervise", job.root.uri, job.job_id, str(scratch), json.dumps(options))
    first = python(*arguments)
    try:
        until(lambda: commits_of(job) >= 8)
        os.kill(first.pid, signal.SIGKILL)
        first.wait()
        second = python(*arguments)
        until(lambda: (found := job.read_newest_supervisor()) is not None and found.pid == second.pid)
        (scratch / "gate").touch()
        assert second.wait(120) == 0
    finally:
        _end([first])
    assert status_of(job).state is JobState.COMPLETED  # type: ignore[union-attr]
    assert len(job.attempts()) == 1
    assert newest(job, scratch)[1] == weights_after(12)  # type: ignore[index]


def _end(children: Iterable[subprocess.Popen[bytes]]) -> None:
    for child in children:
        if child.poll() is None:
            os.killpg(child.pid, signal.SIGKILL)
        child.wait()
