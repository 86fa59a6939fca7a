"""One training run by the bare trainer, killed on the way and started again: for benchmarks and for tests on a GPU."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from crucible.config import TrainConfig
from crucible.contract import METRICS_FILE

_LOOK_SECONDS = 0.05


def train(config: TrainConfig, data: Path, out: Path, kill_at: Sequence[int] = ()) -> dict[str, Any]:
    """Train in `out` to the end; SIGKILL when the metrics have reached each step of `kill_at`.

    Returns the trainer's line of JSON and the `seconds` of each start. Raises SystemExit with the trainer's last lines
    if it fails.
    """
    out.mkdir(parents=True, exist_ok=True)
    file = out / "config.json"
    file.write_text(config.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "crucible.training", "--config", str(file), "--data", str(data)]
    seconds = []
    for kill in (*kill_at, None):
        began = time.perf_counter()
        with (out / "log.txt").open("a", encoding="utf-8") as log:
            process = subprocess.Popen(
                [*command, "--out", str(out), "--json"],
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                env={**os.environ, "PYTHONUNBUFFERED": "1"},
            )
            while kill is not None and process.poll() is None and _reached(out / METRICS_FILE) < kill:
                time.sleep(_LOOK_SECONDS)
            if kill is not None:
                process.kill()
            output, _ = process.communicate()
        seconds.append(round(time.perf_counter() - began, 2))
        if kill is None and process.returncode:
            raise SystemExit(f"the trainer failed:\n{(out / 'log.txt').read_text(encoding='utf-8')[-2000:]}")
        if kill is not None and process.returncode == 0:
            raise SystemExit(f"the run was over before it could be killed at step {kill}: use more steps")
    return {**json.loads(output.splitlines()[-1]), "seconds": seconds}


def _reached(metrics: Path) -> int:
    """The highest step in the metrics; a line that is still being written counts later."""
    try:
        lines = metrics.read_text(encoding="utf-8").split("\n")[:-1]
    except FileNotFoundError:
        return 0
    return max((json.loads(line)["step"] for line in lines), default=0)
