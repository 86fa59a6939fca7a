"""The cap on a job's cost, with the real trainer through the real pipeline; a quick one is in test_pipeline.py."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from crucible.checkpoints.commits import Checkpoints
from crucible.jobs.job import Job
from crucible.jobs.status import JobState, status_of
from crucible.rehearsal.drill.stage import Stage, local_stage
from tests.flows.staged import eventually, final_state
from tests.flows.test_pipeline import require_within_cap

CAP = 0.05
SMALL = {"n_layer": 1, "n_embd": 32, "n_head": 2, "threads": 1}
USD_PER_HOUR = 9.0
"""Twenty seconds for the cap."""
STEPS = {"max_iters": 20_000, "checkpoint_interval_seconds": 1.0, **SMALL}
"""Longer than that on any machine."""


def start(stage: Stage, job: str, **parameters: Any) -> str:
    """`prefect deployment run train-nanogpt`, as a user types it; returns the flow run's id."""
    dataset = {"source": "python-stdlib", "max_bytes": 300_000}
    values = {"preset": "debug", "dataset": dataset, "job": job, **parameters}
    said = stage.prefect("deployment", "run", "train-nanogpt", "--params", json.dumps(values))
    return str(UUID(said.split("UUID:")[1].split()[0]))


def weights(job: Job) -> str:
    final = Checkpoints(job).list()[0]
    assert final.step == STEPS["max_iters"]
    return next(file.sha256 for file in final.files if file.name == "model.safetensors")


def let_it_end(stage: Stage, run: str) -> str:
    return str(final_state(stage, run)["name"])


@pytest.mark.slow
@pytest.mark.timeout(3600)
def test_the_weights_of_a_capped_run_are_those_of_an_uncapped_one(tmp_path: Path) -> None:
    with local_stage(tmp_path) as stage:
        assert let_it_end(stage, start(stage, "uncapped", config=STEPS, run_evaluation=False)) == "Completed"

        offers = f"pool,instance,usd_per_hour\nlocal,this-machine,{USD_PER_HOUR}\n"
        (stage.home.root / "offers.csv").write_text(offers)
        run = start(stage, "capped", config=STEPS, run_evaluation=False)
        job = Job(stage.store, "capped")
        eventually(lambda: job.store.exists("job.json"), "the job")
        stage.crucible("jobs", "limits", "capped", "--max-cost-usd", str(CAP))
        assert let_it_end(stage, run) == "BudgetStop"
        require_within_cap(job, 1)

        said = stage.crucible("jobs", "continue", "capped", "--max-cost-usd", "none")
        assert let_it_end(stage, said.split()[-1]) == "Completed"
        status = status_of(job)
        assert status is not None
        assert status.state is JobState.COMPLETED
        assert len(job.attempts()) == 2
        assert weights(job) == weights(Job(stage.store, "uncapped"))
