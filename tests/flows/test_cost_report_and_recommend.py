"""The flows against a real Prefect server: what they leave in the UI."""

from __future__ import annotations

import csv
import io
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter

from crucible.jobs.job import Job
from crucible.jobs.records import Claim, EndReason, JobSpec, Launch, Outcome
from crucible.store import Store, store_at
from tasks.ending import Ended

pytestmark = pytest.mark.usefixtures("prefect_api")


def artifact(key: str) -> str:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter.model_validate({"key": {"any_": [key]}}))
    return str(max(found, key=lambda entry: entry.created).data)  # type: ignore[arg-type, return-value]


def spend(store: Store, name: str, usd: float, claimed_at: datetime | None = None) -> None:
    job = Job.create(store, JobSpec(job_id=name, project="paper", owner="ada"))
    job.decide(Launch(number=1, pool="ec2-spot", instance="g6.xlarge", usd_per_hour=0.4, reason="test"))
    job.attempt(1).take(Claim(number=1, claimed_at=claimed_at or datetime.now(UTC)))
    job.attempt(1).end(Outcome(end_reason=EndReason.COMPLETED, message="", seconds=900.0, cost_usd=usd))


def test_recommend_leaves_a_table_and_a_report_with_chart_and_reasons(tmp_path: Path) -> None:
    from flows.recommend import recommend

    state: Any = recommend(preset="gpt2-124m", tokens="1B", store=str(tmp_path), return_state=True)
    assert state.is_completed()
    report = artifact("recommendation")
    assert report.startswith(f"# Run it on {state.message.split(':')[0]}")
    assert "data:image/png;base64," in report
    assert "## Pros and cons" in report
    assert "no worker online" in report, "the pools of the server were asked"
    assert "no NVIDIA GPU" in report or "docker-gpu" in report
    table = artifact("recommendation-offers")
    assert "ec2-spot/g6.xlarge" in table

    with pytest.raises(Ended, match="pools has 'mars'") as refused:
        recommend(preset="debug", pools=("mars",), store=str(tmp_path))
    assert refused.value.state.is_failed()


def test_cost_report_says_to_the_cent_what_its_csv_says(tmp_path: Path) -> None:
    from flows.cost_report import cost_report

    store = store_at(tmp_path.as_uri())
    for number, usd in enumerate((0.333333, 0.083403, 0.514375)):
        spend(store, f"job-{number}", usd)
    state: Any = cost_report(store=store.uri, period="week", return_state=True)
    assert state.is_completed()
    assert "**$0.931111** for 3 attempts of 3 jobs" in artifact("cost-report-week")
    (written,) = store.list("reports/costs")
    assert written.key in state.message
    lines = csv.DictReader(io.StringIO(store.read(written.key).decode()))
    assert sum(round(float(line["usd"]) * 1e6) for line in lines) == 931_111


def test_a_scheduled_report_that_runs_late_reports_its_own_day(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from flows.cost_report import cost_report

    store = store_at(tmp_path.as_uri())
    spend(store, "today", 0.5)
    spend(store, "before", 0.25, claimed_at=datetime(2026, 5, 6, 20, tzinfo=UTC))
    spend(store, "after", 0.125, claimed_at=datetime(2026, 5, 7, 8, tzinfo=UTC))
    due = datetime(2026, 5, 7, 7, tzinfo=UTC)
    monkeypatch.setattr("prefect.runtime.flow_run.scheduled_start_time", due, raising=False)
    state: Any = cost_report(store=store.uri, period="day", return_state=True)
    assert state.message == "$0.25 in the last day; reports/costs/day-2026-05-07.csv"


def test_a_budget_block_gives_each_alert_once(tmp_path: Path) -> None:
    from blocks.budget import Budget
    from flows.cost_report import check_budgets

    store = store_at(tmp_path.as_uri())
    Budget(usd=1.0, project="paper").save("routing-test", overwrite=True)  # type: ignore[unused-coroutine]
    spend(store, "within", 0.4)
    assert check_budgets(store=store.uri, return_state=True).message == "no new alert"  # type: ignore[union-attr]
    spend(store, "over-80", 0.45)
    assert check_budgets(store=store.uri, return_state=True).message == "2 alerts"  # type: ignore[union-attr]
    assert check_budgets(store=store.uri, return_state=True).message == "no new alert"  # type: ignore[union-attr]
