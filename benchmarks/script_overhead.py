"""What `crucible run` costs a script: `python -m benchmarks.script_overhead [--minutes 3] [--pairs 2]`.

Times the same unmodified script (`examples/nanogpt_style`) bare and under `crucible run`, in pairs whose order
alternates, so that a machine that slows down favours neither. Two ratios: from the script's first to its last step, by
the script's own clock, and the whole time at the terminal, from the command to the prompt, on a server that is up.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import write_result
from crucible.local.state import PROJECT
from crucible.rehearsal.drill.stage import Stage, local_stage

EXAMPLE = PROJECT / "examples" / "nanogpt_style"
TRIAL_STEPS = 300
_STEP = re.compile(r"^iter (\d+): .*time ([\d.]+)ms", re.MULTILINE)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=3.0, help="how long the bare training is to take")
    parser.add_argument("--pairs", type=int, default=2)
    options = parser.parse_args()
    result = measure(60 * options.minutes, options.pairs)
    print(json.dumps(result, indent=2))
    write_result("script_overhead", result)


def measure(seconds: float, pairs: int) -> dict[str, Any]:
    """So many pairs of a training that takes about so many seconds bare."""
    found: dict[bool, list[tuple[float, float]]] = {True: [], False: []}
    with (
        tempfile.TemporaryDirectory(prefix="crucible-bench-", ignore_cleanup_errors=True) as folder,
        local_stage(Path(folder)) as stage,
    ):
        in_steps, _ = _bare(stage, Path(folder) / "trial", _command(TRIAL_STEPS))
        command = _command(int(seconds * TRIAL_STEPS / in_steps))
        for pair in range(pairs):
            for under_crucible in (False, True) if pair % 2 == 0 else (True, False):
                name = f"{'run' if under_crucible else 'bare'}-{pair}"
                run = _under_crucible if under_crucible else _bare
                found[under_crucible].append(run(stage, Path(folder) / name, command))
    bare, with_crucible = found[False], found[True]
    return {
        "command": " ".join(command[1:]),
        "bare_step_seconds": [round(steps, 1) for steps, _ in bare],
        "run_step_seconds": [round(steps, 1) for steps, _ in with_crucible],
        "steps_ratio": round(sum(steps for steps, _ in with_crucible) / sum(steps for steps, _ in bare), 3),
        "bare_seconds": [round(whole, 1) for _, whole in bare],
        "run_seconds": [round(whole, 1) for _, whole in with_crucible],
        "whole_ratio": round(sum(whole for _, whole in with_crucible) / sum(whole for _, whole in bare), 3),
    }


def _command(steps: int) -> list[str]:
    return ["python", "train.py", f"--max_iters={steps}", "--eval_interval=250"]


def _copy(folder: Path) -> Path:
    folder.mkdir()
    for name in ("train.py", "crucible.yaml"):
        (folder / name).write_bytes((EXAMPLE / name).read_bytes())
    return folder


def _bare(stage: Stage, folder: Path, command: list[str]) -> tuple[float, float]:
    """Seconds of the steps, and of the whole command."""
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, *command[1:]],
        cwd=_copy(folder),
        env=dict(stage.environment),
        capture_output=True,
        text=True,
        check=True,
    )
    return _step_seconds(done.stdout), time.monotonic() - began


def _under_crucible(stage: Stage, folder: Path, command: list[str]) -> tuple[float, float]:
    _copy(folder)
    began = time.monotonic()
    stage.crucible("run", "--json", "--name", folder.name, "--folder", str(folder), "--", *command)
    whole = time.monotonic() - began
    return _step_seconds(stage.crucible("logs", folder.name, "--raw")), whole


def _step_seconds(printed: str) -> float:
    """From the first to the last step that was printed: each line has the time since the one before."""
    return sum(float(milliseconds) for step, milliseconds in _STEP.findall(printed) if int(step) > 0) / 1000


if __name__ == "__main__":
    main()
