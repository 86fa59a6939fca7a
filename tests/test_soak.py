"""A long soak: a hundred random faults, twenty to a job; its log is kept under `benchmarks/results/`."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks.results import write_result
from crucible.rehearsal.drill.drill import Drill
from crucible.rehearsal.drill.stage import local_stage
from crucible.rehearsal.drill.workload import Trainer

FAULTS = 20
SECONDS_BETWEEN_FAULTS = 8.0
"""Twice a drill's own: no job may end before its last fault, however much faster the machine gets on the way."""


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("seed", range(2026, 2031))
def test_soak(tmp_path: Path, seed: int) -> None:
    with local_stage(tmp_path) as stage:
        verdict = Drill(stage, FAULTS, seed, workload=Trainer(SECONDS_BETWEEN_FAULTS)).run()
    write_result(f"soak-{seed}", verdict.as_json())
    print(f"seed {seed}", json.dumps(verdict.as_json(), indent=1))
    assert verdict.passed, verdict.failures
