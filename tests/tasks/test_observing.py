"""What of a workload's output and progress reaches Prefect."""

from __future__ import annotations

import logging

import pytest

from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, Heartbeat
from crucible.prefect_compat import live_artifacts
from crucible.store import Store
from tasks import observing
from tasks.observing import AttemptObserver, LineLimit, Rates
from tests.faults.small_jobs import new_job
from tests.prefect_compat.test_live_artifacts import Server


@pytest.mark.parametrize(("lines", "repeated"), [(40, False), (400, True)])
def test_the_last_lines_of_a_failed_workload_arrive_once(
    store: Store, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, lines: int, repeated: bool
) -> None:
    job: Job = new_job(store)
    monkeypatch.setattr(observing, "get_logger", lambda _: logging.getLogger("test"))
    monkeypatch.setattr(observing, "emit", lambda *_, **__: None)
    observer = AttemptObserver(job, 1)
    observer._limit = LineLimit(Rates(60, 0.0, 0.0))
    printed = [f"line {number}" for number in range(lines)]
    with caplog.at_level(logging.INFO, "test"):
        for line in printed:
            observer.log(line)
        observer.event("last-lines", "\n".join(printed[-20:]))
        observer.event("ended", "failed")
    shown = "\n".join(record.getMessage() for record in caplog.records)
    assert shown.count(printed[-1]) == 1
    assert ("the last lines of the workload:" in shown) is repeated
    assert (f"{lines - 60} lines were left out here; `crucible logs" in shown) is repeated


@pytest.mark.parametrize(("end_reason", "shown"), [(EndReason.COMPLETED, 100.0), (EndReason.SUPERSEDED, 10.0)])
def test_the_progress_ends_where_the_attempt_ended(
    store: Store, monkeypatch: pytest.MonkeyPatch, end_reason: EndReason, shown: float
) -> None:
    server = Server()
    monkeypatch.setattr(live_artifacts, "get_client", lambda sync_client: server)
    monkeypatch.setattr(observing, "emit_event", lambda *_, **__: None)
    observer = AttemptObserver(new_job(store), 1, clock=lambda: 0.0)
    for step in (10, 100):
        observer.heartbeat(Heartbeat(sequence=step, phase="training", step=step, total_steps=100))
    observer.event("ended", "done", end_reason=end_reason)
    assert [row.data for row in server.rows] == [shown]
