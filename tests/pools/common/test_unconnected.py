"""Attempts on machines that reach no Prefect server: what they are told, and how their end is shown by the worker."""

from __future__ import annotations

import json
from pathlib import Path
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun

from crucible.config import TrainConfig
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, JobSpec, Outcome
from crucible.pools.common.unconnected import ATTEMPT_OF, attempt_of, recorded_end
from crucible.store import store_at


def run(**parameters: object) -> FlowRun:
    return FlowRun(flow_id=uuid4(), parameters=parameters)


def test_the_machine_of_an_attempt_is_told_which_one_it_is_for_and_no_other() -> None:
    assert json.loads(attempt_of(run(job="nano", attempt=2, store="s3://b"))[ATTEMPT_OF]) == {
        "job": "nano",
        "attempt": 2,
        "store": "s3://b",
    }
    assert json.loads(attempt_of(run(job="nano", attempt=2))[ATTEMPT_OF])["store"] == "default"
    assert attempt_of(run(dataset="shakespeare")) == {}


@pytest.mark.parametrize(
    ("reason", "decided_by", "state"),
    [
        (EndReason.COMPLETED, "agent", "COMPLETED Completed"),
        (EndReason.INTERRUPTED, "agent", "CANCELLED Interrupted"),
        (EndReason.FAILED, "agent", "FAILED Failed"),
        (EndReason.LOST, "supervisor", None),
    ],
    ids=lambda value: str(value),
)
def test_the_attempts_own_record_says_how_its_flow_run_ended(
    tmp_path: Path, reason: EndReason, decided_by: str, state: str | None
) -> None:
    store = store_at(str(tmp_path / "store"))
    job = Job.create(store, JobSpec(job_id="nano", config=TrainConfig(), total_steps=10))
    flow_run = run(job="nano", attempt=1)
    environment = {"CRUCIBLE_STORE": store.uri}
    assert recorded_end(flow_run, environment) is None
    job.attempt(1).end(
        Outcome(
            end_reason=reason, message="so it was", committed_step=10, seconds=1.0, cost_usd=0.0, decided_by=decided_by
        )
    )
    found = recorded_end(flow_run, environment)
    assert (found and f"{found.type.value} {found.name}") == state
    assert found is None or "did not reach this server" in str(found.message)
    assert recorded_end(flow_run, {}) is None
