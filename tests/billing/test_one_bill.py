"""Five attempts on three pools, one bill: in the Prefect UI, in the job's report, in `crucible cost` and in the CSV."""

from __future__ import annotations

import csv
import io
import json
import re
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
import typer
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter
from typer.testing import CliRunner

from crucible.catalog.offers import load_catalog
from crucible.cli import cost as command
from crucible.jobs.job import Job
from crucible.jobs.records import Claim, EndReason, JobSpec, Launch, Notification, Outcome
from crucible.reports import job_report
from crucible.store import Store
from tasks.reporting import JobReport

MODAL = next(offer for offer in load_catalog() if offer.key == "modal/L4").usd_per_hour
# The cents of each, rounded for themselves, are short of the whole; and no binary fraction is exact.
ATTEMPTS = [
    ("ec2-spot", "g6.xlarge", 0.374, 3300.0),
    ("ec2-spot", "g6.xlarge", 0.3811, 980.0),
    ("ec2-on-demand", "g6.xlarge", 0.8048, 333.3),
    ("modal", "L4", MODAL, 777.1),
    ("ec2-spot", "g6.xlarge", 0.3699, 2180.0),
]
MICRO = [round(price * seconds / 3600 * 1e6) for _, _, price, seconds in ATTEMPTS]

pytestmark = pytest.mark.usefixtures("prefect_api", "home")


@pytest.fixture
def job(store: Store) -> Job:
    """As agent and supervisor leave it."""
    job = Job.create(store, JobSpec(job_id="moved", project="bill", owner="ada"))
    began = datetime.now(UTC) - timedelta(hours=4)
    for number, (pool, instance, price, seconds) in enumerate(ATTEMPTS, 1):
        job.decide(Launch(number=number, pool=pool, instance=instance, usd_per_hour=price, reason=f"try {number}"))
        attempt = job.attempt(number)
        attempt.take(Claim(number=number, instance=instance, claimed_at=began))
        last = number == len(ATTEMPTS)
        attempt.end(
            Outcome(
                end_reason=EndReason.COMPLETED if last else EndReason.INTERRUPTED,
                message="",
                seconds=seconds,
                cost_usd=round(price * seconds / 3600, 6),
                first_step_after_seconds=30.0,
                notifications=[Notification(source="ec2", reason="rebalance")],
                ended_at=began + timedelta(seconds=seconds),
            )
        )
        began += timedelta(seconds=seconds + 60)
    return job


def artifact(key: str) -> Any:
    with get_client(sync_client=True) as client:
        found = client.read_artifacts(artifact_filter=ArtifactFilter.model_validate({"key": {"any_": [key]}}))
    return max(found, key=lambda entry: entry.created).data  # type: ignore[arg-type, return-value]


def micro(text: str) -> int:
    return round(float(text) * 1e6)


def of_job(rows: list[dict[str, Any]]) -> list[int]:
    return [micro(row["usd"]) for row in rows if row["job"] == "moved"]


def run(*arguments: str) -> str:
    app = typer.Typer()
    command.register(app)
    app.command("other")(lambda: None)
    return CliRunner().invoke(app, ["cost", *arguments], catch_exceptions=False).stdout


def test_every_rendering_of_the_bill_has_the_same_sum(store: Store, job: Job) -> None:
    from flows.cost_report import cost_report

    total = sum(MICRO)
    assert sum(round(cost / 1e4) for cost in MICRO) != round(total / 1e4), "rounding each would show"

    state: Any = cost_report(store=store.uri, period="day", return_state=True)
    assert state.is_completed()
    assert of_job(json.loads(artifact("cost-attempts-day"))) == MICRO
    assert f"**${total / 1e6:,.6f}** for 5 attempts of 1 job," in artifact("cost-report-day")
    (written,) = store.list("reports/costs")
    assert of_job(list(csv.DictReader(io.StringIO(store.read(written.key).decode())))) == MICRO

    JobReport(job).publish()
    report = str(artifact("job-moved"))
    lines = re.findall(r"^\| (\d|total) \|.* (\d+\.\d{6}) \|$", report, re.MULTILINE)
    assert [micro(usd) for name, usd in lines if name != "total"] == MICRO
    assert [micro(usd) for name, usd in lines if name == "total"] == [total]

    told = json.loads(run("moved", "--store", store.uri, "--json"))
    assert of_job(told["attempts"]) == MICRO
    assert micro(told["total_usd"]) == total
    assert f"total ${total / 1e6:.6f} over 5 attempts" in run("moved", "--store", store.uri)
    by_pool = json.loads(run("--by", "pool", "--store", store.uri, "--json"))["groups"]
    assert {group["pool"] for group in by_pool} == {"ec2-spot", "ec2-on-demand", "modal"}
    assert sum(round(group["usd"] * 1e6) for group in by_pool) == total


def test_the_report_says_what_was_saved_and_what_interruptions_took(job: Job) -> None:
    report = job_report(job)
    on_demand = [0.8048 * seconds / 3600 for pool, _, _, seconds in ATTEMPTS if pool != "modal"]
    whole = sum(round(usd * 1e6) for usd in on_demand) + MICRO[3]
    share = 1 - sum(MICRO) / whole
    assert f"{share:.0%} saved: the same time on demand would have cost ${whole / 1e6:.6f}." in report
    assert "Recovering from interruptions took 6 min in all" in report, (
        "four times a minute away and half a minute back"
    )


def test_trials_add_up_to_their_sweep(store: Store, job: Job) -> None:
    store.write_json("sweeps/wide/sweep.json", {})
    for name in ("wide-0001", "wide-0002", "wide-x", "narrow-0001"):
        trial = Job.create(store, JobSpec(job_id=name))
        trial.decide(Launch(number=1, pool="modal", instance="L4", usd_per_hour=1.0, reason="trial"))
        trial.attempt(1).take(Claim(number=1))
        trial.attempt(1).end(Outcome(end_reason=EndReason.PAUSED, message="", seconds=360.0, cost_usd=0.1))
    groups = json.loads(run("--by", "sweep", "--store", store.uri, "--json"))["groups"]
    assert {group["sweep"]: (group["jobs"], round(group["usd"], 6)) for group in groups} == {
        "wide": (2, 0.2),
        "-": (3, round(sum(MICRO) / 1e6 + 0.2, 6)),
    }
