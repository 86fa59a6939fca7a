"""What several nodes gain and cost, on the loopback interface: a step on two processes against one, in one run.

    python -m benchmarks.nodes [--quick]

One process with one thread, and two with one thread each, which exchange gradients by gloo as nodes do (in the order of
the ranks, `crucible.training.processes`), take turns of a few steps each. The speed-up is the median over the rounds of
the ratio of median step times; the share of communication is that of the exchange, waiting included, in a step of two.
Both see the same rows; the largest difference of their losses is given beside. Two processes need two idle cores.
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from benchmarks.results import write_result
from benchmarks.training_step import CPU_SMALL, WIDER, write_dataset
from crucible.config import TrainConfig


def main() -> None:
    """Run the benchmark and print the ratios."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    parser.add_argument("--worker", nargs=2, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(TrainConfig.parse(json.loads(options.worker[0])), Path(options.worker[1]))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        write_dataset(Path(name))
        sizes = [("cpu-small", CPU_SMALL, 3 if options.quick else 15, 10 if options.quick else 40)]
        sizes += [("L6 D384 T256 B8", WIDER, 2 if options.quick else 8, 1 if options.quick else 3)]
        for size, config, rounds, steps in sizes:
            figures[size] = found = compare(config.with_overrides({"threads": 1}), Path(name), rounds, steps)
            print(
                f"{size}: two processes {found['speedup']:.2f}x of one, {found['communication_share']:.0%} of their "
                f"step is communication ({found['gradient_mb']:.1f} MB of gradients, losses differ by "
                f"{found['largest_loss_difference']:.1e})",
                flush=True,
            )
    if not options.quick:
        print(write_result("nodes", figures))


def compare(config: TrainConfig, folder: Path, rounds: int, steps: int) -> dict[str, Any]:
    """Medians over the rounds."""
    groups = [Group(count, config, folder) for count in (1, 2)]
    turns: list[list[Any]] = [[], []]
    for group in groups:
        group.run(steps)  # warm up
    for number in range(rounds):
        for place in (0, 1) if number % 2 == 0 else (1, 0):
            turns[place].append(groups[place].run(steps))
    for group in groups:
        group.close()
    one, two = ([statistics.median(turn["seconds"]) for turn in of] for of in turns)
    shares = [sum(turn["communication"]) / sum(turn["seconds"]) for turn in turns[1]]
    losses = [[loss for turn in of for loss in turn["losses"]] for of in turns]
    return {
        "speedup": round(statistics.median(a / b for a, b in zip(one, two, strict=True)), 3),
        "communication_share": round(statistics.median(shares), 3),
        "median_ms": {"one": round(1e3 * statistics.median(one), 2), "two": round(1e3 * statistics.median(two), 2)},
        "gradient_mb": turns[1][0]["gradient_bytes"] / 1e6,
        "largest_loss_difference": max(abs(a - b) for a, b in zip(*losses, strict=True)),
    }


class Group:
    """One process or two, which wait for their turn."""

    def __init__(self, count: int, config: TrainConfig, folder: Path) -> None:
        with socket.socket() as listener:
            listener.bind(("127.0.0.1", 0))
            port = str(listener.getsockname()[1])
        shared = {"WORLD_SIZE": str(count), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port, "OMP_NUM_THREADS": "1"}
        shared |= {"LOCAL_WORLD_SIZE": "1", "LOCAL_RANK": "0", "GLOO_SOCKET_IFNAME": "lo"}
        command = [sys.executable, "-m", "benchmarks.nodes", "--worker", config.model_dump_json(), str(folder)]
        self.processes = [
            subprocess.Popen(
                command,
                env={**os.environ, **shared, "RANK": str(rank)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                text=True,
            )
            for rank in range(count)
        ]

    def run(self, steps: int) -> Any:
        """Let them train `steps` steps; what the first process reports."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.write(f"{steps}\n")
            process.stdin.flush()
        answers = [json.loads(process.stdout.readline()) for process in self.processes if process.stdout is not None]
        return answers[0]

    def close(self) -> None:
        """End them."""
        for process in self.processes:
            assert process.stdin is not None
            process.stdin.close()
        for process in self.processes:
            process.wait()


def work(config: TrainConfig, folder: Path) -> None:
    """Train in turns, as many steps as each line of standard input says."""
    from crucible.training import cpu

    gemm = cpu.choose_gemm("off", None)

    from torch import Tensor

    from crucible.training.data import Dataset
    from crucible.training.processes import Processes
    from crucible.training.trainer import Trainer

    class Timed(Processes):
        seconds = 0.0

        def average(self, tensor: Tensor) -> None:
            began = time.perf_counter()
            super().average(tensor)
            self.seconds += time.perf_counter() - began

    processes = Timed()
    trainer = Trainer(config, Dataset(folder), gemm=gemm.backend, processes=processes)
    trainer.model.train()
    for line in sys.stdin:
        report: dict[str, Any] = {"seconds": [], "communication": [], "losses": []}
        for _ in range(int(line)):
            processes.seconds = 0.0
            began = time.perf_counter()
            trainer.train_step()
            report["seconds"].append(time.perf_counter() - began)
            report["communication"].append(processes.seconds)
            report["losses"].append(trainer.means.read(trainer.step)[0])
        gradients = trainer.optimizer.gradients
        report["gradient_bytes"] = gradients.numel() * gradients.element_size()
        print(json.dumps(report), flush=True)
    processes.close()


if __name__ == "__main__":
    main()
