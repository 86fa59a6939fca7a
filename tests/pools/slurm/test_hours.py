"""GPU hours of an allocation, from the attempts' own records."""

from __future__ import annotations

from pathlib import Path

import pytest
from typer.testing import CliRunner

from crucible.cli.main import build_app
from crucible.config import TrainConfig
from crucible.jobs.job import Job
from crucible.jobs.records import Claim, EndReason, JobSpec, Launch, Outcome
from crucible.store import store_at


def test_the_hours_of_gpus_are_counted_by_project_and_those_of_other_pools_are_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CRUCIBLE_HOME", str(tmp_path))
    (tmp_path / "offers.csv").write_text("pool,instance,usd_per_hour,gpus,gpu\nslurm,gpu,0,4,A100-40GB\n")
    store = store_at(str(tmp_path / "store"))
    for number, (project, pool, hours) in enumerate(
        [("thesis", "slurm", 2.0), ("other", "slurm", 0.5), ("x", "modal", 9)]
    ):
        spec = JobSpec(job_id=f"job{number}", project=project, config=TrainConfig(), total_steps=10)
        job = Job.create(store, spec)
        job.decide(Launch(number=1, pool=pool, reason="as asked", instance="gpu"))
        attempt = job.attempt(1).take(Claim(number=1, instance="gpu"))
        attempt.end(Outcome(end_reason=EndReason.COMPLETED, message="done", seconds=hours * 3600))
    shown = CliRunner().invoke(build_app(), ["slurm", "hours", "--allocation", "100", "--store", store.uri])
    lines = [line.split(None, 1) for line in shown.output.splitlines()]
    assert lines == [
        ["8.00", "thesis"],
        ["2.00", "other"],
        ["10.00", "GPU hours in 2 attempts; 90.00 left of 100"],
    ]
