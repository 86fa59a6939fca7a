"""Processes of one group start together, hear signals together, and end with one exit code."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import pytest

from crucible.training.launch import launch


def group(code: str) -> list[str]:
    return [sys.executable, "-S", "-c", "import os, sys, time, signal; rank = int(os.environ['RANK']);" + code]


@pytest.mark.parametrize(
    ("code", "expected"),
    [
        ("sys.exit(0 if os.environ['WORLD_SIZE'] == '3' and rank == int(os.environ['LOCAL_RANK']) else 1)", 0),
        ("sys.exit(75)", 75),
        ("sys.exit(75 if rank == 0 else 0)", 75),
        ("time.sleep(1000 if rank else 0); sys.exit(3)", 3),  # the others are not waited for
        ("time.sleep(1000) if rank else os.kill(os.getpid(), signal.SIGKILL)", 137),
    ],
)
def test_one_exit_code(code: str, expected: int) -> None:
    assert launch(group(code), 3) == expected


def test_a_signal_that_comes_while_they_start_reaches_every_process(tmp_path: Path) -> None:
    code = (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75));"
        f"open(os.path.join({str(tmp_path)!r}, str(rank)), 'w').close(); time.sleep(1000)"
    )
    program = f"""
import os, signal, subprocess, sys
from pathlib import Path
from crucible.training import launch
class Started(subprocess.Popen):
    def __init__(self, command, env):
        super().__init__(command, env=env)
        while not Path({str(tmp_path)!r}, env["RANK"]).exists():
            pass
        if env["RANK"] == "0":
            os.kill(os.getpid(), signal.SIGTERM)
launch.subprocess.Popen = Started
sys.exit(launch.launch({group(code)!r}, 2))
"""
    assert subprocess.run([sys.executable, "-c", program], check=False, timeout=120).returncode == 75


def test_signal_reaches_every_process(tmp_path: Path) -> None:
    code = (
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(75));"
        f"open(os.path.join({str(tmp_path)!r}, str(rank)), 'w').close(); time.sleep(1000)"
    )
    program = f"import sys; from crucible.training.launch import launch; sys.exit(launch({group(code)!r}, 2))"
    process = subprocess.Popen([sys.executable, "-c", program])
    while process.poll() is None and len(list(tmp_path.iterdir())) < 2:
        pass
    process.send_signal(signal.SIGTERM)
    assert process.wait() == 75
