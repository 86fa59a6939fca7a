"""Training steps per second of our trainer against a plain loop of the same model on a CPU, in one run.

    python -m benchmarks.training_step [--quick]

Each way runs in a process of its own (kernels are chosen before torch is imported); they take turns, a few steps each,
in an order that is reversed every round, so that a noisy machine is noisy for all of them. A speed-up is the median
over the rounds of the ratio of median step times: a machine whose speed drifts is compared with itself. That of the
fastest steps, which other processes disturb least, is given too, and that over the plain loop on the same kernels: what
the trainer gains around the products, on oneMKL's fast path as an Intel processor would run it. All float32 ways see
the same batches: the largest difference of their losses is given beside. The plain loop's share of matrix products,
attention's included, says what is left to gain around them while torch multiplies as it does.
GPUs have a benchmark of their own: `benchmarks.gpu`.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import cpu_flags, write_result
from crucible.config import TrainConfig

VOCABULARY = 65

WAYS = {
    "plain": {"fast_gemm": "off"},
    "plain, oneMKL's fast path": {"fast_gemm": "shim"},
    "trainer, nothing special": {"fast_gemm": "off"},
    "trainer, oneMKL's fast path": {"fast_gemm": "shim"},
    "trainer, oneDNN": {"fast_gemm": "onednn"},
    "trainer, fast_gemm = auto": {"fast_gemm": "auto"},
    "trainer, auto and bfloat16": {"fast_gemm": "auto", "dtype": "bfloat16"},
}
PRODUCTS = {"aten::mm", "aten::addmm", "aten::bmm"}

CPU_SMALL = TrainConfig.preset("cpu-small")
WIDER = CPU_SMALL.with_overrides({"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 8})


def main() -> None:
    """Run the benchmark and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a few steps, to see that it works")
    parser.add_argument("--worker", nargs=3, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        work(options.worker[0], TrainConfig.parse(json.loads(options.worker[1])), Path(options.worker[2]))
        return
    figures: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder)
        sizes = [("cpu-small", CPU_SMALL, 3 if options.quick else 20, 10 if options.quick else 40)]
        sizes += [("L6 D384 T256 B8", WIDER, 2 if options.quick else 12, 1 if options.quick else 3)]
        for size, config, rounds, steps in sizes:
            figures[size] = compare(cpu_ways(), config, folder, rounds, steps)
            show(size, figures[size])
    if not options.quick:
        # What there is to gain hangs on AVX-512, so figures of either kind of processor are kept.
        print(write_result("training_step" + ("" if "avx512f" in cpu_flags() else "_without_avx512"), figures))


def cpu_ways() -> dict[str, dict[str, Any]]:
    """Those that this processor does not take for ever over."""
    bfloat16 = {"avx512_bf16", "amx_bf16"} & set(cpu_flags())
    return {way: changes for way, changes in WAYS.items() if bfloat16 or changes.get("dtype") != "bfloat16"}


def compare(ways: dict[str, dict[str, Any]], base: TrainConfig, folder: Path, rounds: int, steps: int) -> Any:
    """Median step time, speed-up and loss difference of each way."""
    workers = {way: Worker(way, base.with_overrides(changes), folder) for way, changes in ways.items()}
    times: dict[str, list[list[float]]] = {way: [] for way in ways}
    losses: dict[str, list[float]] = {way: [] for way in ways}
    for worker in workers.values():
        worker.run(steps)  # warm up, and compile where asked
    for number in range(rounds):
        for way in list(ways) if number % 2 == 0 else reversed(ways):
            answer = workers[way].run(steps)
            times[way].append(answer["seconds"])
            losses[way] += answer["losses"]
    share = workers["plain"].matmul_share()
    for worker in workers.values():
        worker.close()
    tokens = base.batch_size * base.block_size
    medians = {way: [statistics.median(turn) for turn in turns] for way, turns in times.items()}
    median = {way: statistics.median(itertools.chain.from_iterable(turns)) for way, turns in times.items()}
    fastest = {way: min(map(min, turns)) for way, turns in times.items()}
    plain_on = {workers[way].kernels: way for way in ways if way.startswith("plain")}

    def speedup(way: str, over: str) -> float:
        return round(statistics.median(a / b for a, b in zip(medians[over], medians[way], strict=True)), 3)

    return {
        way: {
            "speedup": speedup(way, "plain"),
            "speedup_of_fastest": round(fastest["plain"] / fastest[way], 3),
            "speedup_on_equal_kernels": speedup(way, plain_on.get(workers[way].kernels, "plain")),
            "median_ms": round(1e3 * median[way], 3),
            "tokens_per_second": round(tokens / median[way]),
            "largest_loss_difference": max(abs(a - b) for a, b in zip(losses[way], losses["plain"], strict=True)),
            "kernels": workers[way].kernels,
        }
        | ({"matmul_share": share} if way == "plain" else {})
        for way in ways
    }


class Worker:
    """One way, in a process that waits for its turn."""

    def __init__(self, way: str, config: TrainConfig, folder: Path) -> None:
        command = [sys.executable, "-m", "benchmarks.training_step", "--worker", way, config.model_dump_json()]
        self.process = subprocess.Popen(
            [*command, str(folder)],
            env={**os.environ, "KINETO_LOG_LEVEL": "99"},  # the profiler would say on stderr that it starts and stops
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.kernels = str(self._answer()["kernels"])

    def run(self, steps: int) -> Any:
        """Let it train `steps` steps and wait; seconds and loss of each."""
        return self._ask(str(steps))

    def matmul_share(self) -> float:
        """The share of a step's time that goes into matrix products, by torch's profiler."""
        return float(self._ask("profile")["matmul_share"])

    def close(self) -> None:
        """End the process."""
        self.process.communicate()

    def _ask(self, line: str) -> Any:
        assert self.process.stdin is not None
        self.process.stdin.write(f"{line}\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit("a worker has failed; its message is above")
        return json.loads(line)


def work(way: str, config: TrainConfig, folder: Path) -> None:
    """The worker's side: train as many steps as each line of input says."""
    from crucible.training.hardware import may_compute_on_cpu

    kernels = "mkl"
    if may_compute_on_cpu(config.device):
        from crucible.training import cpu

        kernels = cpu.choose_gemm(config.fast_gemm).backend
    step = plain_step(config, folder) if way.startswith("plain") else trainer_step(config, folder, kernels)
    print(json.dumps({"kernels": kernels}), flush=True)
    for line in sys.stdin:
        if line.strip() == "profile":
            print(json.dumps({"matmul_share": matmul_share(step)}), flush=True)
            continue
        seconds, losses = [], []
        for _ in range(int(line)):
            began = time.perf_counter()
            losses.append(step())
            seconds.append(time.perf_counter() - began)
        print(json.dumps({"seconds": seconds, "losses": losses}), flush=True)


def matmul_share(step: Callable[[], float]) -> float:
    """Of the operators' own time in ten steps. Attention on a CPU calls the same products block by block."""
    import torch

    with torch.profiler.profile() as profile:
        for _ in range(10):
            step()
    own = {event.key: float(event.self_cpu_time_total) for event in profile.key_averages()}
    products = [name for name in own if name in PRODUCTS or name.startswith("aten::_scaled_dot_product")]
    return round(sum(own[name] for name in products) / sum(own.values()), 3)


def plain_step(config: TrainConfig, folder: Path) -> Callable[[], float]:
    """The plain loop's step."""
    from benchmarks.plain_loop import PlainLoop

    loop = PlainLoop(config, folder / "train-00000.bin", VOCABULARY)
    return loop.step


def trainer_step(config: TrainConfig, folder: Path, kernels: str) -> Callable[[], float]:
    """The trainer's step, its loss read every time, as the plain loop's is."""
    from crucible.training.data import Dataset
    from crucible.training.trainer import Trainer

    trainer = Trainer(config, Dataset(folder), gemm=kernels)

    def step() -> float:
        trainer.train_step()
        return trainer.means.read(trainer.step)[0]

    return step


def write_dataset(folder: Path) -> None:
    """A million tokens in which each follows from the one before in one of eight ways: something to learn."""
    generator = np.random.default_rng(0)
    splits = {}
    for name, count in (("train", 1_000_000), ("val", 100_000)):
        tokens = (np.cumsum(generator.integers(1, 9, count)) % VOCABULARY).astype("<u2")
        (folder / f"{name}-00000.bin").write_bytes(tokens.tobytes())
        splits[name] = {"tokens": count, "bytes": count, "shards": [{"file": f"{name}-00000.bin", "tokens": count}]}
    meta = {"schema_version": 1, "digest": "benchmark", "vocab_size": VOCABULARY, "dtype": "uint16", "splits": splits}
    (folder / "meta.json").write_text(json.dumps(meta))


def show(size: str, rows: Any) -> None:
    """Print one table."""
    share = rows["plain"]["matmul_share"]
    print(f"\n{size}: {share:.1%} of the plain step are matrix products: {1 / share:.2f}x if all else were free")
    for way, row in rows.items():
        print(
            f"  {way:28s} {row['speedup']:5.2f}x (fastest steps {row['speedup_of_fastest']:.2f}x, "
            f"equal kernels {row['speedup_on_equal_kernels']:.2f}x)  "
            f"{row['median_ms']:9.2f} ms/step  {row['tokens_per_second']:>9,} tok/s  {row['kernels']:7s} "
            f"loss differs by at most {row['largest_loss_difference']:.1e}",
            flush=True,
        )


if __name__ == "__main__":
    main()
