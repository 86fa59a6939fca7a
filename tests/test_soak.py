"""A long soak: many random faults on one job; its log is kept under `benchmarks/results/`."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from benchmarks.results import write_result
from crucible.rehearsal.drill.drill import Drill
from crucible.rehearsal.drill.stage import local_stage

FAULTS = int(os.environ.get("CRUCIBLE_SOAK_FAULTS", "100"))
SEED = int(os.environ.get("CRUCIBLE_SOAK_SEED", "2026"))


@pytest.mark.slow
@pytest.mark.timeout(3 * 3600)
def test_soak(tmp_path: Path) -> None:
    print(f"seed {SEED}, {FAULTS} faults")
    with local_stage(tmp_path) as stage:
        verdict = Drill(stage, FAULTS, SEED).run()
    write_result("soak", verdict.as_json())
    print(json.dumps(verdict.as_json(), indent=1))
    assert verdict.passed, verdict.failures
