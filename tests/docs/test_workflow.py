"""The workflow for GitHub Actions does what its page says: its commands, one after the other, as a runner has them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from crucible.code.selection import select
from crucible.local.state import PROJECT

WORKFLOW = PROJECT / "examples" / "github_actions" / "train.yml"
SCRIPT = PROJECT / "examples" / "nanogpt_style"
STEPS = yaml.safe_load(WORKFLOW.read_text())["jobs"]["train"]["steps"]
SHORT = "python train.py --max_iters=60 --n_layer=1 --n_embd=32 --eval_interval=30"


def test_the_checkout_of_crucible_does_not_travel_with_the_script(tmp_path: Path) -> None:
    for folder, name in ((tmp_path, "train.py"), (tmp_path / ".crucible", "pyproject.toml")):
        folder.mkdir(exist_ok=True)
        (folder / name).touch()
        subprocess.run(["git", "init", "--quiet"], cwd=folder, check=True)
    install = next(step["run"] for step in STEPS if step.get("name") == "Install")
    excluding = [line for line in install.splitlines() if not line.startswith("pip ")]
    subprocess.run(["bash", "-e", "-c", "\n".join(excluding)], cwd=tmp_path, check=True)

    assert select(tmp_path).files == ["train.py"]


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
    commands = [step["run"] for step in STEPS if step.get("run", "").startswith("crucible ")]
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
