"""The benchmark for GPUs works, shown by a model of no size on the CPU: nobody wants to find out on a rented card."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from benchmarks import gpu
from crucible.config import TrainConfig


def require_two_ways(ways: dict[str, Any]) -> None:
    ours, fair = ways["ours"], ways["fair loop"]
    assert ours["tokens_per_second"] > 0
    assert ours["speedup_over_fair_loop"] > 0
    assert fair["speedup_over_fair_loop"] == 1
    assert (ours["micro_batch"], fair["micro_batch"]) == (8, 4)
    assert ours["largest_loss_difference"] < 1e-4, "both train on the same rows"


def test_its_ways_train_on_the_same_rows(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    """In this process: each of the benchmark's own would load torch again."""

    def here(way: str, config: TrainConfig, folder: Path, steps: int) -> dict[str, Any]:
        gpu.work(way, config, folder, steps)
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    monkeypatch.setattr(gpu, "run_worker", here)
    monkeypatch.setattr(gpu, "TINY_ORDER", ["ours", "fair loop"])
    require_two_ways(gpu.measure(tiny=True, device="cpu", seconds=1e9, steps=2)["ways"])


@pytest.mark.slow
def test_its_parts_run_and_agree() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    require_two_ways(figures["ways"])
    assert figures["killed_run"]["equal"]
    assert figures["left_out"] == []
