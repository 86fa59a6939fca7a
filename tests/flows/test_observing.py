"""How much the showing of a job may take from its training."""

from __future__ import annotations

import time

import pytest

from crucible.jobs.job import Job
from crucible.jobs.records import Heartbeat, JobSpec
from crucible.store import Store
from tasks import observing
from tasks.reporting import JobReport


def test_a_report_that_takes_long_to_draw_is_drawn_rarely(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []

    def draw(*_: object) -> None:
        drawn.append(time.thread_time())
        while time.thread_time() < drawn[-1] + 0.6:
            pass

    clock = [1000.0]
    monkeypatch.setattr(JobReport, "publish", draw)
    listener = observing.JobListener(clock=lambda: clock[0])
    job = Job.create(store, JobSpec(job_id="a"))
    beat = Heartbeat(sequence=1, phase="training", step=1)
    listener.watched(job, beat)
    clock[0] += 50.0  # of which six tenths of a second are more than a hundredth
    listener.watched(job, beat)
    assert len(drawn) == 1
    clock[0] += 50.0
    listener.watched(job, beat)
    assert len(drawn) == 2
