"""What four days of training leave in the Prefect server's database, counted on a clock that runs as fast as it can."""

from __future__ import annotations

import json
import logging
from typing import Any

import pytest

from crucible.jobs.job import Job
from crucible.jobs.records import Heartbeat, JobSpec
from crucible.prefect_compat import live_artifacts
from crucible.store import Store
from tasks import observing, reporting
from tests.prefect_compat.test_live_artifacts import Server

SECONDS = 4 * 86400
BEAT_SECONDS = 30
ROW_BYTES = {"log": 463, "event": 12_800}
"""Besides their text, with indices and with the rows of an event's related resources, as `python -m
benchmarks.database_growth` measures them."""
FLOW_RUN_HEARTBEATS = 2 * SECONDS // 14_400
"""Prefect's own events, of the supervisor and of the attempt, at the interval that `client_settings` sets."""
PAGE = "x" * 60_000


class Counted(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.lines, self.bytes = 0, 0

    def emit(self, record: logging.LogRecord) -> None:
        self.lines += 1
        self.bytes += len(record.getMessage())


def test_four_days_of_training_leave_less_than_5_mb(store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    clock, events, server = [0.0], list[str](), Server()
    monkeypatch.setattr(live_artifacts, "get_client", lambda sync_client: server)
    monkeypatch.setattr(observing, "emit_event", lambda event, **fields: events.append(event + json.dumps(fields)))
    monkeypatch.setattr(reporting, "job_report", lambda *_: f"{clock[0]} {PAGE}")
    monkeypatch.setattr(observing, "add_tags", lambda *_, **__: None)
    job = Job.create(store, JobSpec(job_id="long"))
    observer = observing.AttemptObserver(job, 1, clock=lambda: clock[0])
    listener = observing.JobListener(clock=lambda: clock[0])
    counted, logger = Counted(), logging.getLogger("prefect.crucible")
    logger.addHandler(counted)
    monkeypatch.setattr(logger, "propagate", False)
    logger.setLevel(logging.INFO)
    try:
        for beat in range(SECONDS // BEAT_SECONDS):
            clock[0] += BEAT_SECONDS
            step = 10 * beat
            observer.log(f"step {step}: loss 2.3456, 123,456 tokens/s")
            heartbeat = Heartbeat.model_construct(
                sequence=beat, phase="training", step=step, total_steps=10**6, metrics={"train_loss": 2.3}, cost_usd=0.0
            )
            observer.heartbeat(heartbeat)
            if beat % 2 == 0:  # every minute
                observer.event("commit", f"step {step} committed (1,492.0 MB in 12.3 s)", step=step, bytes=1, seconds=2)
            listener.watched(job, heartbeat)
    finally:
        logger.removeHandler(counted)
    rows = {row.key: len(str(row.data)) for row in server.rows}
    artifacts = 2 * sum(rows.values())  # Prefect keeps the newest version in two tables
    logs = counted.bytes + counted.lines * ROW_BYTES["log"]
    payloads = sum(map(len, events)) + (len(events) + FLOW_RUN_HEARTBEATS) * ROW_BYTES["event"]
    assert sorted(rows) == ["job-long", "progress-long"]
    assert server.changes > 10_000, "the pages are kept up to date all the while"
    assert server.changes < 12_000, "but not more often than each minute after the first ten"
    assert counted.lines > 2000, "a line every other minute is shown to the end"
    total: Any = artifacts + logs + payloads
    assert total < 5e6, f"artifacts {artifacts:,}, logs {logs:,}, events {payloads:,} bytes"
