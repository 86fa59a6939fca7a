"""Our bill beside AWS's, from botocore's stubs; Modal's own sums are tested with its pool."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import boto3
import pytest
from botocore.stub import Stubber

from crucible.billing.costs import AttemptCost
from crucible.reports.reconciliation import billed_by_aws, reconcile

SINCE, UNTIL = datetime(2026, 5, 1, tzinfo=UTC), datetime(2026, 5, 3, tzinfo=UTC)


def day(**usd: str) -> dict[str, Any]:
    groups = [
        {"Keys": [f"crucible:job${job}"], "Metrics": {"UnblendedCost": {"Amount": amount, "Unit": "USD"}}}
        for job, amount in usd.items()
    ]
    return {"Groups": groups}


@pytest.fixture
def explorer(monkeypatch: pytest.MonkeyPatch) -> Stubber:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    monkeypatch.setattr("modal.config.config.get", lambda name: None)
    client = boto3.client("ce", region_name="us-east-1")
    monkeypatch.setattr(boto3, "client", lambda name, region_name: client)
    stub = Stubber(client)
    wanted = {
        "TimePeriod": {"Start": "2026-05-01", "End": "2026-05-04"},
        "Granularity": "DAILY",
        "Metrics": ["UnblendedCost"],
        "GroupBy": [{"Type": "TAG", "Key": "crucible:job"}],
    }
    first = {"ResultsByTime": [day(a="1.0", b="0.25")], "NextPageToken": "more"}
    stub.add_response("get_cost_and_usage", first, wanted)
    stub.add_response("get_cost_and_usage", {"ResultsByTime": [day(a="0.5")]}, {**wanted, "NextPageToken": "more"})
    return stub


def test_days_and_pages_are_added_up(explorer: Stubber) -> None:
    with explorer:
        assert billed_by_aws(SINCE, UNTIL) == {"a": 1.5, "b": 0.25}


def test_jobs_are_compared_and_the_cloud_that_cannot_be_asked_says_why(explorer: Stubber) -> None:
    def cost(job: str, pool: str, micro_usd: int) -> AttemptCost:
        values: dict[str, Any] = {"attempt": 1, "stage": "train", "instance": "", "gpu": "", "project": "", "owner": ""}
        values |= {"started_at": SINCE, "end_reason": "completed", "seconds": 1.0, "usd_per_hour": 1.0}
        return AttemptCost(
            job=job, pool=pool, micro_usd=micro_usd, on_demand_micro_usd=micro_usd, idle_seconds=0, **values
        )

    spent = [cost("a", "ec2-spot", 900_000), cost("a", "ec2-on-demand", 500_000), cost("c", "modal", 70_000)]
    with explorer:
        found, messages = reconcile(spent, SINCE, UNTIL)
    assert [(entry.cloud, entry.job, entry.attempts_usd, entry.billed_usd) for entry in found] == [
        ("AWS", "b", 0.0, 0.25),
        ("AWS", "a", 1.4, 1.5),
    ]
    assert messages == ("Modal: skipped, no Modal token is set up",)
