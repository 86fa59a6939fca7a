"""One job over five attempts on three pools with real workers, and its bill in every place that shows it."""

from __future__ import annotations

import csv
import io
import json
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
from prefect.client.orchestration import get_client
from prefect.client.schemas.filters import ArtifactFilter

from crucible.jobs.job import Job
from crucible.jobs.records import JobSpec
from crucible.jobs.status import JobState
from crucible.local.access import prefect_settings
from crucible.local.state import PROJECT
from crucible.rehearsal.drill.stage import Stage, local_stage
from crucible.script_config import ScriptConfig
from crucible.supervision.retry_policy import Decision, Placement
from crucible.supervision.snapshot import AttemptView
from crucible.supervision.supervisor import Supervision
from tasks.launching import PrefectLauncher
from tasks.observing import JobListener
from tests.agent.harness import SCRIPTED, newest
from tests.agent.scripted import weights_after

PLACES = (
    Placement("ec2-spot", "g6.xlarge", 0.374),
    Placement("ec2-on-demand", "g6.xlarge", 0.8048),
    Placement("modal", "L4", 1.1342),
)
ROUTE = (0, 0, 1, 2, 0)
"""Places of the five attempts."""
PAUSES = (4, 8, 12, 16)
"""Steps in which the workload stands still until it is moved."""


@dataclass
class Tour:
    """A course that moves the job on as soon as an attempt has got somewhere."""

    waits_for: frozenset[str] = frozenset()

    def next(self, tries: Sequence[AttemptView], decision: Decision) -> Decision:
        return replace(decision, placement=ROUTE[min(len(tries), len(ROUTE) - 1)])

    def why_leave(self, tries: Sequence[AttemptView]) -> str | None:
        beat, start = tries[-1].heartbeat, tries[-1].start_step
        return "shown another pool" if beat is not None and beat.step in PAUSES and beat.step > start else None


@contextmanager
def pools(stage: Stage) -> Iterator[None]:
    """The three pools, each with a worker that runs its attempts as processes here."""
    workers = []
    try:
        for pool in {place.pool for place in PLACES}:
            stage.prefect("work-pool", "create", pool, "--type", "process", "--overwrite")
            stage.prefect("--no-prompt", "deploy", "flows/train.py:train", "--name", pool, "--pool", pool)
            command = [sys.executable, "-m", "prefect", "worker", "start", "--pool", pool]
            workers.append(subprocess.Popen(command, cwd=PROJECT, env=dict(stage.environment)))
        yield
    finally:
        for worker in workers:
            worker.terminate()
        for worker in workers:
            worker.wait(60)


def artifact(key: str) -> str:
    with get_client(sync_client=True) as client:
        wanted = ArtifactFilter.model_validate({"key": {"any_": [key]}})
        found = client.read_artifacts(artifact_filter=wanted)
    return str(max(found, key=lambda entry: entry.created).data)  # type: ignore[arg-type, return-value]


def cents(rows: list[dict[str, Any]]) -> list[int]:
    return [round(float(row["usd"]) * 1e6) for row in rows]


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_five_attempts_on_three_pools_have_one_bill(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path / "stage"))
    with local_stage(tmp_path / "stage") as stage, pools(stage):
        with prefect_settings(stage.home):
            script = {"steps": 20, "every": 2, "at": {str(step): f"wait {tmp_path / 'never'}" for step in PAUSES}}
            command = [sys.executable, str(SCRIPTED), json.dumps(script)]
            spec = JobSpec(job_id="tour", script=ScriptConfig(command=command))
            job = Job.create(stage.store, spec)
            launcher = PrefectLauncher(stage.store.uri, "default", "")
            supervision = Supervision(job, launcher, PLACES, JobListener(), placement_policy=Tour())
            supervision.timeouts.placement_review = 1.0
            assert supervision.run().state is JobState.COMPLETED
            found = newest(job, tmp_path)
            assert found is not None
            assert found[1] == weights_after(20)

            launches = [attempt.read_launch() for attempt in job.attempts()]
            assert [launch.pool for launch in launches if launch] == [PLACES[n].pool for n in ROUTE]
            outcomes = [attempt.read_outcome() for attempt in job.attempts()]
            spent = [round(outcome.cost_usd * 1e6) for outcome in outcomes if outcome]
            assert all(spent)

            stage.prefect("deployment", "run", "cost-report/cost-report", "--watch")
            assert cents(json.loads(artifact("cost-attempts-day"))) == spent
            assert f"**${sum(spent) / 1e6:,.6f}** for 5 attempts of 1 job," in artifact("cost-report-day")
            assert f"| {sum(spent) / 1e6:.6f} |" in artifact("job-tour")
        (written,) = stage.store.list("reports/costs")
        assert cents(list(csv.DictReader(io.StringIO(stage.store.read(written.key).decode())))) == spent
        told = json.loads(stage.crucible("cost", "tour", "--json"))
        assert cents(told["attempts"]) == spent
        assert told["total_usd"] == f"{sum(spent) / 1e6:.6f}"
        print(stage.crucible("cost", "tour"))
