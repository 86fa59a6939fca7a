"""The benchmark for GPUs works, shown by a model of no size on the CPU: nobody wants to find out on a rented card."""

from __future__ import annotations

import json
import subprocess
import sys


def test_its_parts_run_and_agree() -> None:
    command = [sys.executable, "-m", "benchmarks.gpu", "--device", "cpu", "--tiny", "--json"]
    done = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True)
    figures = json.loads(done.stdout.splitlines()[-1])
    ours, fair = figures["ways"]["ours"], figures["ways"]["fair loop"]
    assert ours["tokens_per_second"] > 0
    assert ours["speedup_over_fair_loop"] > 0
    assert fair["speedup_over_fair_loop"] == 1
    assert (ours["micro_batch"], fair["micro_batch"]) == (8, 4)
    assert ours["largest_loss_difference"] < 1e-4, "both train on the same rows"
    assert figures["killed_run"]["equal"]
    assert figures["left_out"] == []
