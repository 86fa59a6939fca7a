"""How long the step loop pauses for a checkpoint of GPT-2 124M's size, compared with a blocking torch.save.

    python -m benchmarks.checkpoint_stall [--quick]

The state is 1.49 GB: weights and AdamW's two moments in float32. The two ways take turns; each save is followed by the
same work as training would do, and the next begins when the former is durable. Our time ends when the files are
fsynced, checksummed and renamed; torch.save's is given both as people call it, and with an fsync.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.results import write_result
from crucible.config import TrainConfig
from crucible.training.model import GPT
from crucible.training.optimizer import FlatAdamW
from crucible.training.saver import Saver, SaveReport
from crucible.workload.folders import MODEL, OPTIMIZER, RNG, STATE, fault, safetensors_header


def main() -> None:
    """Run the benchmark and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true", help="a tenth of the size, two rounds")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, help="on which disk to save (default: the current one)")
    options = parser.parse_args()
    config = TrainConfig.preset("gpt2-124m")
    if options.quick:
        config = config.with_overrides({"n_layer": 2, "n_embd": 192})
    with tempfile.TemporaryDirectory(dir=options.folder or Path.cwd(), prefix=".checkpoint-stall-") as name:
        figures = measure(config, Path(name), 2 if options.quick else options.rounds)
    print(
        f"{figures['state_gb']:.2f} GB: the loop stands still {figures['stall_seconds']:.3f} s, "
        f"{figures['ratio']:.3f}x of torch.save's {figures['torch_save_seconds']:.2f} s "
        f"({figures['ratio_with_fsync']:.3f}x of {figures['torch_save_fsync_seconds']:.2f} s with fsync); durable "
        f"after {figures['durable_seconds']:.2f} s, work meanwhile {figures['slowdown_while_writing']:.2f}x as long"
    )
    if not options.quick:
        print(write_result("checkpoint_stall", figures))


def measure(config: TrainConfig, folder: Path, rounds: int) -> dict[str, Any]:
    """Medians over the rounds."""
    model = GPT(config, 50257)
    optimizer = FlatAdamW(model, config)
    moments = (optimizer.first_moment, optimizer.second_moment)
    for moment in moments:
        moment.normal_()
    shapes = {name: tuple(parameter.shape) for name, parameter in optimizer.parameters.items()}
    tensors = {
        MODEL: ([optimizer.weights], safetensors_header(shapes)),
        OPTIMIZER: (list(moments), safetensors_header({f"{m}.{n}": s for m in "mv" for n, s in shapes.items()})),
    }
    state = {
        "model": dict(optimizer.named(optimizer.weights)),
        "moments": [{name: piece.clone() for name, piece in optimizer.named(moment)} for moment in moments],
    }
    base = statistics.median(work() for _ in range(20))
    saver = Saver(folder, tensors, None, print)
    small = {RNG: b"{}", STATE: b"{}"}
    stalls, durable, slowdowns, blocking, blocking_fsync = [], [], [], [], []
    for step in range(1, rounds + 1):
        began = time.perf_counter()
        saver.save(step, small, began)
        stalls.append(time.perf_counter() - began)
        report, during = train_until_written(saver)
        durable.append(report.write_seconds)
        slowdowns.append(statistics.mean(during) / base)
        sound = folder / f"step-{step:08d}"
        assert fault(sound) is None
        shutil.rmtree(sound)
        seconds, with_fsync = torch_save(state, folder / "plain.pt")
        blocking.append(seconds)
        blocking_fsync.append(with_fsync)
    saver.close()
    stall = statistics.median(stalls)
    return {
        "state_gb": 12e-9 * optimizer.weights.numel(),
        "stall_seconds": stall,
        "torch_save_seconds": statistics.median(blocking),
        "torch_save_fsync_seconds": statistics.median(blocking_fsync),
        "ratio": stall / statistics.median(blocking),
        "ratio_with_fsync": stall / statistics.median(blocking_fsync),
        "durable_seconds": statistics.median(durable),
        "slowdown_while_writing": statistics.median(slowdowns),
        "rounds": rounds,
    }


def train_until_written(saver: Saver) -> tuple[SaveReport, list[float]]:
    """Work as a step loop would, looking at the save between steps."""
    during = []
    while True:
        during.append(work())
        report = saver.poll()
        if report is not None:
            return report, during


def torch_save(state: Mapping[str, Any], path: Path) -> tuple[float, float]:
    """Seconds for torch.save, and for torch.save with fsync."""
    path.unlink(missing_ok=True)
    began = time.perf_counter()
    torch.save(state, path)
    saved = time.perf_counter() - began
    with path.open("rb+") as file:
        os.fsync(file.fileno())
    return saved, time.perf_counter() - began


def work(size: int = 768) -> float:
    """Seconds for a few matrix products, the stand-in for a training step."""
    a = torch.ones(size, size)
    began = time.perf_counter()
    for _ in range(4):
        a = a @ a
        a /= a.max()
    return time.perf_counter() - began


if __name__ == "__main__":
    main()
