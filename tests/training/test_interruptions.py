"""The real program, stopped and killed from outside at any moment, ends where an undisturbed one ends."""

from __future__ import annotations

import fcntl
import json
import os
import random
import resource
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import IO

import pytest

from crucible.contract import finished_folders
from crucible.training.data import Dataset
from crucible.workload.folders import fault
from tests.training.conftest import TINY, train_in

# Every step reports, so that the test knows where it is.
CONFIG = TINY.with_overrides({"max_iters": 400, "eval_interval": 1000})


@dataclass
class Program:
    """`python -m crucible.training` on its own, started again with the same command each time.

    Its metrics go into the smallest pipe there is: it cannot run on for more than some steps beyond what has been
    read, however long the sender of a signal is kept from its processor.
    """

    folder: Path
    data: Path
    seconds: str = "0.02"

    def start(self) -> tuple[subprocess.Popen[str], IO[str]]:
        """The process and its metrics, which end when it does."""
        config = self.folder / "config.json"
        config.write_text(CONFIG.with_overrides({"checkpoint_interval_seconds": self.seconds}).model_dump_json())
        command = [sys.executable, "-m", "crucible.training", "--config", str(config), "--data", str(self.data)]
        reader, writer = os.pipe()
        fcntl.fcntl(writer, fcntl.F_SETPIPE_SZ, resource.getpagesize())
        process = subprocess.Popen(
            [*command, "--out", str(self.folder), "--json"],
            env={
                **os.environ,
                "OMP_NUM_THREADS": "1",
                "CRUCIBLE_METRICS_FILE": f"/dev/fd/{writer}",
            },
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            pass_fds=[writer],
            text=True,
        )
        os.close(writer)
        return process, os.fdopen(reader)

    def run(self) -> tuple[subprocess.Popen[str], str, str]:
        """Undisturbed to its end: the process, its output and what it said."""
        process, metrics = self.start()
        with metrics:
            for _ in metrics:
                pass
        return process, *process.communicate()

    def run_until(self, step: int, number: signal.Signals) -> tuple[subprocess.Popen[str], str, str]:
        """As `run`, with a signal sent when the metrics tell of the step."""
        process, metrics = self.start()
        with metrics:
            next((line for line in metrics if json.loads(line)["step"] >= step), None)
            process.send_signal(number)
        return process, *process.communicate()

    @property
    def checkpoints(self) -> Path:
        return self.folder / "checkpoints"


@pytest.fixture(scope="module")
def undisturbed(data_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> str:
    _, result = train_in(tmp_path_factory.mktemp("whole"), Dataset(data_folder), CONFIG)
    return result.weights_sha256


@pytest.mark.timeout(900)  # four starts of a program that imports torch
def test_signals_at_three_seeded_steps(tmp_path: Path, data_folder: Path, undisturbed: str) -> None:
    steps = sorted(random.Random(2024).sample(range(20, 380), 3))
    signals = [signal.SIGTERM, signal.SIGKILL, signal.SIGINT]
    program = Program(tmp_path, data_folder)
    resumed = 0
    for step, number in zip(steps, signals, strict=True):
        process, output, words = program.run_until(step, number)
        resumed += "resumed at step" in words
        assert process.returncode == (-signal.SIGKILL if number == signal.SIGKILL else 75), words
        assert not output
        if number != signal.SIGKILL:
            assert "saved, start again to go on" in words
        # Saves were under way all the time: what has its final name must be whole.
        assert [fault(folder) for folder in finished_folders(program.checkpoints)] == [None] * len(
            finished_folders(program.checkpoints)
        )
    process, output, words = program.run()
    assert process.returncode == 0, words
    result = json.loads(output.splitlines()[-1])
    assert set(result) == {"step", "train_loss", "val_loss", "tokens_per_second", "weights_sha256"}
    assert result["weights_sha256"] == undisturbed
    assert resumed == 2
    assert len(finished_folders(program.checkpoints)) == CONFIG.keep_checkpoints
    assert not list(program.checkpoints.glob("*.partial"))
