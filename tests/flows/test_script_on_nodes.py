"""`crucible run --nodes 2` on the pool `local` of a real server: both nodes start, meet, and are one attempt."""

from __future__ import annotations

from pathlib import Path

import pytest

from crucible.jobs.job import Job
from crucible.jobs.records import EndReason
from crucible.rehearsal.drill.stage import local_stage

SCRIPT = """\
import os, pathlib, sys

rank, size, node = (os.environ[name] for name in ("RANK", "WORLD_SIZE", "CRUCIBLE_NODE_RANK"))
pathlib.Path(sys.argv[1], f"rank-{rank}").write_text(f"of {size} on node {node}")
if rank == "0":
    pathlib.Path("model.txt").write_text("trained")
"""


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_script_on_two_nodes_is_one_attempt_whose_nodes_both_run_it(tmp_path: Path) -> None:
    project, seen = tmp_path / "project", tmp_path / "seen"
    project.mkdir()
    seen.mkdir()
    (project / "train.py").write_text(SCRIPT)
    with local_stage(tmp_path / "stage") as stage:
        given = ("--name", "pair", "--folder", str(project), "--output", "model.txt", "--nodes", "2", "--gpus", "0")
        stage.crucible("run", *given, "--", "python", "train.py", str(seen))
        (attempt,) = Job.open(stage.store, "pair").attempts()
        claim, outcome = attempt.read_claim(), attempt.read_outcome()
    assert claim is not None
    assert claim.nodes == 2
    assert outcome is not None
    assert outcome.end_reason is EndReason.COMPLETED
    assert {file.name: file.read_text() for file in seen.iterdir()} == {
        "rank-0": "of 2 on node 0",
        "rank-1": "of 2 on node 1",
    }
