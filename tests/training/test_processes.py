"""Two processes under torchrun train what one process trains, exactly repeatable, interrupted or not.

This file is also the first of the two programs that torchrun starts.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from crucible.contract import finished_folders
from crucible.training.data import Dataset
from crucible.training.processes import Processes
from tests.training.conftest import TINY, train_in

ROOT = Path(__file__).parents[2]
CONFIG = TINY.with_overrides({"gradient_accumulation_steps": 2, "max_iters": 12})
SMOOTH = CONFIG.with_overrides({"dropout": 0.0})


def main(folder: Path, data: Path) -> None:
    """One of the two processes; the first writes what both have done to results.json."""
    processes = Processes()
    dataset = Dataset(data)
    _, smooth = train_in(folder / "smooth", dataset, SMOOTH, processes=processes)
    _, whole = train_in(folder / "whole", dataset, CONFIG, processes=processes)
    train_in(folder / "parts" / "checkpoints", dataset, CONFIG, until=5, processes=processes)
    processes.close()

    if processes.first:
        threads = [name.read_text().strip() for name in Path("/proc/self/task").glob("*/comm")]
        results = {"smooth": vars(smooth), "whole": vars(whole), "threads": threads}
        (folder / "results.json").write_text(json.dumps(results))


def torchrun(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Two processes under torchrun; one process group each time, as torch's own rendezvous wants it."""
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", *arguments],
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done


def test_two_processes_learn_like_one_and_resume_exactly(tmp_path: Path, data_folder: Path) -> None:
    (tmp_path / "config.json").write_text(CONFIG.model_dump_json())
    torchrun("-m", "tests.training.test_processes", str(tmp_path), str(data_folder))
    resumed = torchrun(
        *("-m", "crucible.training", "--config", str(tmp_path / "config.json"), "--data", str(data_folder)),
        *("--out", str(tmp_path / "parts"), "--json", "--set", "checkpoint_interval_seconds=0.001"),
    )
    parts = json.loads(resumed.stdout.splitlines()[-1])
    results = json.loads((tmp_path / "results.json").read_text())
    _, one = train_in(tmp_path / "one", Dataset(data_folder), SMOOTH)
    assert results["smooth"]["val_loss"] == pytest.approx(one.val_loss, abs=1e-5)
    assert results["smooth"]["train_loss"] == pytest.approx(one.train_loss, abs=1e-5)

    checkpoints = tmp_path / "parts" / "checkpoints"
    assert f"resumed at step 5 from {checkpoints / 'step-00000005'}" in resumed.stderr
    assert "another environment" not in resumed.stderr
    generators = json.loads((finished_folders(checkpoints)[-1] / "rng.json").read_text())["ranks"]
    assert generators[0]["torch"] != generators[1]["torch"]
    assert parts["weights_sha256"] == results["whole"]["weights_sha256"]
    assert not [name for name in results["threads"] if "gloo" in name], "the group outlived its end"


@pytest.mark.parametrize(
    ("processes", "micro_batches", "advice"),
    [
        (
            6,
            40,
            "use 5 of them, which trains the same, or another gradient_accumulation_steps, which does not: 36 or 42",
        ),
        (2, 1, "use 1 of them, which trains the same, or another gradient_accumulation_steps, which does not: 2"),
        (
            3,
            40,
            "use 2 of them, which trains the same, or another gradient_accumulation_steps, which does not: 39 or 42",
        ),
    ],
)
def test_accumulation_must_divide_among_the_processes(
    monkeypatch: pytest.MonkeyPatch, dataset: Dataset, processes: int, micro_batches: int, advice: str
) -> None:
    from crucible.errors import ConfigError
    from crucible.training.trainer import Trainer

    group = Processes()
    monkeypatch.setattr(group, "count", processes)
    config = TINY.with_overrides({"gradient_accumulation_steps": micro_batches, "batch_size": 1})
    with pytest.raises(ConfigError, match=f"{micro_batches} cannot be divided among {processes} processes; {advice}"):
        Trainer(config, dataset, processes=group)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
