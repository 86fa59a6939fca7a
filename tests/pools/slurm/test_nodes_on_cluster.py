"""Two nodes of a real Slurm train one attempt; one of them dies in the middle."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, Launch, Outcome
from crucible.pools.slurm import script
from crucible.rehearsal.slurm.cluster import LocalCluster
from tests.pools.slurm.test_on_cluster import Jobs
from tests.tasks.standing.sitecustomize import DEATH
from tests.tasks.training_on_nodes import ENDLESS, PROJECT, ROWS, Death, new_job, require_same_weights
from tests.waiting import until

pytestmark = pytest.mark.slow


@pytest.fixture
def jobs(cluster: LocalCluster, tmp_path: Path) -> Jobs:
    return Jobs(cluster, tmp_path / "logs")


def submit(
    jobs: Jobs,
    job: Job,
    number: int,
    folder: Path,
    monkeypatch: pytest.MonkeyPatch,
    stop_at: int | None = None,
) -> str:
    """One batch job of two nodes, which runs the attempt as a flow run would; the second may die (`Death`)."""
    (folder / "rows").mkdir(exist_ok=True)
    job.decide(Launch(number=number, pool="slurm", reason="test", nodes=2, stop_at_step=stop_at))
    program = "python -m tests.tasks.training_on_nodes"
    monkeypatch.setattr(script, "FURTHER_NODE", f"{program} further {job.root.uri} {number} $CRUCIBLE_NODE_RANK")
    return asyncio.run(
        jobs.submit(
            f"{program} first slurm {job.root.uri} {number}",
            name=f"nodes-{folder.name}",
            env={
                ROWS: str(folder / "rows"),
                "CRUCIBLE_HOME": str(folder / "home"),
                DEATH: str(folder.parent / "death"),
            },
            nodes="2",
            venv=sys.prefix,
            workdir=str(PROJECT),
        )
    )


def outcome(job: Job, number: int) -> Outcome:
    until(lambda: job.attempt(number).read_outcome(), 900)
    found = job.attempt(number).read_outcome()
    assert found is not None
    return found


def test_a_node_that_dies_costs_time_and_no_bit(
    cluster: LocalCluster, jobs: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    death = Death.planned(tmp_path)
    killed = new_job(tmp_path / "killed", max_iters=ENDLESS, checkpoint_interval_seconds=0.1)
    job_id = submit(jobs, killed, 1, tmp_path / "killed", monkeypatch)
    _, second = cluster.nodes
    death.strike(lambda: cluster.kill_node(second))
    try:
        ended = outcome(killed, 1)
        assert (ended.end_reason, ended.step) == (EndReason.INTERRUPTED, death.step), (ended, jobs.output(job_id))
        assert "node 1" in ended.message
    finally:
        cluster.start_node(second)
    jobs.end(job_id)
    cluster.wait_until_idle()
    last = ended.committed_step + 20
    job_id = submit(jobs, killed, 2, tmp_path / "killed", monkeypatch, stop_at=last)
    assert outcome(killed, 2).end_reason is EndReason.PAUSED, jobs.output(job_id)

    undisturbed = new_job(tmp_path / "undisturbed", max_iters=ENDLESS)
    job_id = submit(jobs, undisturbed, 1, tmp_path / "undisturbed", monkeypatch, stop_at=last)
    assert outcome(undisturbed, 1).end_reason is EndReason.PAUSED, jobs.output(job_id)
    assert jobs.end(job_id).state == "COMPLETED", jobs.output(job_id)
    require_same_weights(undisturbed, killed, last, death)
