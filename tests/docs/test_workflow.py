"""The workflow for GitHub Actions does what its page says: its commands, one after the other, as a runner has them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from crucible.local.state import PROJECT

WORKFLOW = PROJECT / "examples" / "github_actions" / "train.yml"
SCRIPT = PROJECT / "examples" / "nanogpt_style"
SHORT = "python train.py --max_iters=60 --n_layer=1 --n_embd=32 --eval_interval=30"


@pytest.mark.slow
def test_a_pull_request_trains_and_the_summary_says_how(tmp_path: Path) -> None:
    folder, home, summary = tmp_path / "repository", tmp_path / "home", tmp_path / "summary.md"
    home.mkdir()
    shutil.copytree(SCRIPT, folder)
    settings = yaml.safe_load((folder / "crucible.yaml").read_text()) | {"command": SHORT, "total_steps": 60}
    (folder / "crucible.yaml").write_text(yaml.safe_dump(settings))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "CRUCIBLE_"))}
    path = os.pathsep.join([str(Path(sys.executable).parent), kept["PATH"]])
    env = {**kept, "HOME": str(home), "PATH": path, "JOB": "pr-1-abc", "GITHUB_STEP_SUMMARY": str(summary)}
    steps = yaml.safe_load(WORKFLOW.read_text())["jobs"]["train"]["steps"]
    commands = [step["run"] for step in steps if step.get("run", "").startswith("crucible ")]
    try:
        for command in commands:
            done = subprocess.run(
                ["bash", "-e", "-o", "pipefail", "-c", command],
                cwd=folder,
                env=env,
                capture_output=True,
                text=True,
                check=False,
            )
            assert done.returncode == 0, f"{command}: {done.stdout}{done.stderr}"
    finally:
        subprocess.run(["crucible", "down"], cwd=folder, env=env, capture_output=True, check=False)
    assert "pr-1-abc" in summary.read_text()
    assert "completed" in summary.read_text()
