"""Attempts on machines that reach no Prefect server: what they are told, and how their end is shown by the worker."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest
from prefect.client.schemas.objects import FlowRun

from crucible.config import TrainConfig
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import EndReason, JobSpec, Outcome
from crucible.pools.common.attempts import attempt_of
from crucible.pools.common.unconnected import ATTEMPT_OF, attempt_variable, recorded_end
from crucible.store import store_at

NO_SERVER: Any = None


def run(**parameters: object) -> FlowRun:
    return FlowRun(flow_id=uuid4(), parameters=parameters)


def test_the_machine_of_an_attempt_is_told_which_one_it_is_for_and_no_other() -> None:
    assert json.loads(attempt_variable(run(job="nano", attempt=2, store="s3://b"))[ATTEMPT_OF]) == {
        "job": "nano",
        "attempt": 2,
        "store": "s3://b",
    }
    assert json.loads(attempt_variable(run(job="nano", attempt=2))[ATTEMPT_OF])["store"] == "default"
    assert attempt_variable(run(dataset="shakespeare")) == {}


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
    attempt = job.attempt(1)
    assert recorded_end(attempt) is None
    attempt.end(
        Outcome(
            end_reason=reason, message="so it was", committed_step=10, seconds=1.0, cost_usd=0.0, decided_by=decided_by
        )
    )
    found = recorded_end(attempt)
    assert (found and f"{found.type.value} {found.name}") == state
    assert found is None or "did not reach this server" in str(found.message)


def test_the_attempt_of_a_flow_run_is_found_in_the_store_that_its_machine_is_given(tmp_path: Path) -> None:
    store = store_at(str(tmp_path / "store"))
    Job.create(store, JobSpec(job_id="nano", config=TrainConfig(), total_steps=10))

    def found(environment: Mapping[str, str], **parameters: object) -> Attempt | None:
        return asyncio.run(attempt_of(NO_SERVER, run(**parameters), environment))

    for environment, given in (({"CRUCIBLE_STORE": store.uri}, {}), ({}, {"store": store.uri})):
        attempt = found(environment, job="nano", attempt=2, **given)
        assert attempt is not None
        assert (attempt.job.job_id, attempt.number) == ("nano", 2)
    assert found({}, dataset="shakespeare") is None
    assert found({}, dataset="shakespeare", store=store.uri) is None
