"""What preprocessing on a pool costs is on a bill, also where the job that it was for never came to be."""

from __future__ import annotations

import importlib
from pathlib import Path

import pytest

from crucible.billing.costs import attempt_costs
from crucible.config import TrainConfig
from crucible.errors import ServiceError, StoreRefused
from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec
from crucible.jobs.stage_records import StageRun
from crucible.reports import job_report
from crucible.reports.overview import OverviewReader
from crucible.store import FileStore, Store
from flows.parameters import TrainRequest
from tasks.early_bills import EarlyBills
from tasks.stopping import StopWatch
from tasks.supervising import SupervisedJob
from tests.sweeps.carry_out import new_sweep


def bill_of(name: str, usd: float, end: str) -> StageRun:
    return StageRun(name=name, stage="preprocess", pool="modal", seconds=60, cost_usd=usd, end=end)


def fail(run: SupervisedJob, *recorded: StageRun) -> None:
    with EarlyBills(run) as bills:
        for bill in recorded:
            bills.record(bill)
        raise ServiceError("preprocess on modal ended as Failed: no such file")


def test_a_stage_that_fails_before_its_job_exists_is_paid_for(store: Store) -> None:
    spec = JobSpec(job_id="mine", project="paper", owner="ada")
    run = SupervisedJob(Job(store, "mine"), spec, store.uri, StopWatch())
    for name in ("run-1", "run-2"):
        with pytest.raises(ServiceError):
            fail(run, bill_of(name, 0.1, ""), bill_of(name, 0.3, "failed"))
    costs = attempt_costs(store, {})
    assert [(cost.job, cost.stage, cost.usd, cost.project, cost.owner) for cost in costs] == [
        ("mine-preprocess", "preprocess", 0.3, "paper", "ada")
    ] * 2
    assert "| preprocess | modal<br>" in job_report(Job(store, "mine-preprocess"))
    assert OverviewReader(store).read().needing == [
        ("mine-preprocess", "failed before there was a job: fix the cause, then start mine again")
    ]
    assert not run.job.store.exists("job.json"), "its name is free"
    assert EarlyBills(run).left_usd(1.0) == pytest.approx(0.4)

    with EarlyBills(run) as bills:
        bills.record(bill_of("run-3", 0.2, "completed"))
        Job.create(store, spec)
    assert Job.ids(store) == ["mine"]
    assert run.job.cost_usd() == pytest.approx(0.8), "of all three"
    with pytest.raises(ServiceError):
        fail(run, bill_of("run-4", 0.1, "failed"))
    assert run.job.cost_usd() == pytest.approx(0.9), "a job that is continued pays at once"
    assert Job.ids(store) == ["mine"]


def test_what_cost_nothing_leaves_nothing(store: Store) -> None:
    run = SupervisedJob(Job(store, "mine"), JobSpec(job_id="mine"), store.uri, StopWatch())
    with pytest.raises(ServiceError):
        fail(run, bill_of("run-1", 0.0, "failed"))
    assert Job.ids(store) == []


class Refused(FileStore):
    """A store without conditional writes."""

    def require_guarantees(self) -> None:
        raise StoreRefused("ignores If-None-Match")


def test_a_store_that_cannot_hold_the_job_is_refused_before_a_machine_is_paid_for(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipeline = importlib.import_module("flows.train_nanogpt")
    monkeypatch.setattr(pipeline, "run_stage", lambda _: pytest.fail("a machine was started"))
    store = Refused(tmp_path / "store")
    run = SupervisedJob(Job(store, "mine"), JobSpec(job_id="mine"), store.uri, StopWatch())
    with pytest.raises(StoreRefused), EarlyBills(run) as bills:
        pipeline._prepare(TrainRequest(preprocess_pool="modal"), TrainConfig(), run, bills)
    with pytest.raises(StoreRefused):
        new_sweep(store, "rates")
    assert store.list() == []
