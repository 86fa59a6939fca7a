"""Trials in the sweep's own process: which attempts of this machine are over."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from datetime import timedelta

import pytest

from crucible.jobs.job import Job
from crucible.jobs.records import Claim, now
from crucible.local.processes import process_start
from crucible.store import Store
from crucible.supervision.launcher import PoolSays
from tasks.trials import HereLauncher, Machine
from tests.faults.small_jobs import launched, new_job


@pytest.fixture
def another() -> Iterator[int]:
    """The pid of another process."""
    with subprocess.Popen(["sleep", "60"]) as process:
        yield process.pid
        process.kill()


def says(job: Job, **claim: object) -> PoolSays:
    attempt = launched(job, 1)
    attempt.take(Claim(number=1, **claim))  # type: ignore[arg-type]
    launch = attempt.read_launch()
    assert launch is not None
    return HereLauncher(Machine(1, None)).hint(job, launch).says


def test_a_claim_is_alive_while_its_process_is_whatever_the_clock_was_set_to(store: Store, another: int) -> None:
    start = process_start(another)
    assert start is not None
    earlier = now() - timedelta(hours=1)  # than the process, by a clock that has been set since
    assert says(new_job(store), pid=another, process_start=start, claimed_at=earlier) is PoolSays.ALIVE


def test_a_process_that_got_the_pid_of_a_claim_is_not_it(store: Store, another: int) -> None:
    own = process_start(os.getpid())
    assert says(new_job(store), pid=another, process_start=own) is PoolSays.ENDED
