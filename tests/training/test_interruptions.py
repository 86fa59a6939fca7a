"""The real program, stopped and killed from outside at any moment, ends where an undisturbed one ends."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import pytest

from crucible.training.data import Dataset
from crucible.training.folders import fault, finished
from tests.training.conftest import TINY, train_in

# Long enough that a signal finds the loop at work; every step reports, so that the test knows where it is.
CONFIG = TINY.with_overrides({"max_iters": 400, "eval_interval": 1000})


@dataclass
class Program:
    """`python -m crucible.training` on its own, started again with the same command each time."""

    folder: Path
    data: Path
    seconds: str = "0.02"

    def start(self) -> subprocess.Popen[str]:
        config = self.folder / "config.json"
        config.write_text(CONFIG.model_dump_json())
        command = [sys.executable, "-m", "crucible.training", "--config", str(config), "--data", str(self.data)]
        return subprocess.Popen(
            [*command, "--out", str(self.folder), "--json"],
            env={**os.environ, "OMP_NUM_THREADS": "1", "CRUCIBLE_CHECKPOINT_SECONDS": self.seconds},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def wait_for_step(self, step: int, process: subprocess.Popen[str]) -> None:
        """Until the metrics say so, or the program has ended."""
        while process.poll() is None and self.steps_done() < step:
            time.sleep(0.002)

    def steps_done(self) -> int:
        try:
            lines = (self.folder / "metrics.jsonl").read_text().splitlines()
            return int(json.loads(lines[-1])["step"])
        except (OSError, ValueError, IndexError):
            return 0

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


@pytest.fixture(scope="module")
def undisturbed(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    _, result = train_in(tmp_path_factory.mktemp("whole"), Dataset(data_folder), CONFIG)
    return result.weights_sha256


@pytest.mark.timeout(900)  # six starts of a program that imports torch
def test_signals_at_five_seeded_steps(tmp_path: Path, data_folder: Path, undisturbed: str) -> None:
    steps = sorted(random.Random(2024).sample(range(20, 380), 5))
    signals = [signal.SIGTERM, signal.SIGKILL, signal.SIGINT, signal.SIGKILL, signal.SIGTERM]
    program = Program(tmp_path, data_folder)
    resumed = 0
    for step, number in zip(steps, signals, strict=True):
        process = program.start()
        program.wait_for_step(step, process)
        process.send_signal(number)
        output, words = process.communicate()
        resumed += "resumed at step" in words
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 75), words
        assert not output
        if number != signal.SIGKILL:
            assert "saved, start again to go on" in words
        # Saves were under way all the time: what has its final name must be whole.
        assert [fault(folder) for folder in finished(program.checkpoints)] == [None] * len(
            finished(program.checkpoints)
        )
    process = program.start()
    output, words = process.communicate()
    assert process.returncode == 0, words
    result = json.loads(output.splitlines()[-1])
    assert set(result) == {"step", "train_loss", "val_loss", "tokens_per_second", "weights_sha256"}
    assert result["weights_sha256"] == undisturbed
    assert resumed == 4
    assert len(finished(program.checkpoints)) == CONFIG.keep_checkpoints
    assert not list(program.checkpoints.glob("*.partial"))
