"""The cap on a job's cost, with the real trainer through the real pipeline; a quick one is in test_pipeline.py."""

from __future__ import annotations

from pathlib import Path

import pytest

from crucible.checkpoints.commits import Checkpoints
from crucible.jobs.job import Job
from crucible.jobs.status import JobState, status_of
from crucible.rehearsal.drill.stage import Stage, local_stage
from tests.flows.test_pipeline import SMALL, eventually, final_state, require_within_cap, start

CAP = 0.05
USD_PER_HOUR = 9.0
"""Twenty seconds for the cap."""
STEPS = {"max_iters": 20_000, "checkpoint_interval_seconds": 1.0, **SMALL}
"""Longer than that on any machine."""


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
