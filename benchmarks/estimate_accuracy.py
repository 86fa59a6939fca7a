"""How good estimates are: predicted against true CPU seconds of whole runs, for 8 models from 0.1M to 15M parameters.

    python -m benchmarks.estimate_accuracy [--quick]

For each model: a probe of 3 + 10 steps predicts the whole run (start-up, steps, loss estimates, a save), then the real
trainer runs it (`python -m crucible.training`, one thread) and its process is charged by the system. CPU seconds,
because wall time on a shared machine differs by a factor of two whatever one predicts. Then, without a probe: every
model's true speed predicts every other model's, as history does. Bars: with a probe median 10 %, worst 25 %; from
history median 25 %.
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
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.results import write_result
from crucible.catalog.offers import Offer, load_catalog
from crucible.catalog.this_machine import with_own_machine
from crucible.config import TrainConfig
from crucible.estimate.estimate import estimate
from crucible.estimate.needs import Needs, needs_of
from crucible.estimate.probe import probe
from crucible.estimate.speed import speed_on, speed_record

VAL_TOKENS = 4096
# name: vocabulary, shape, steps that take about ten CPU seconds
MODELS: dict[str, tuple[int, dict[str, Any], int]] = {
    "0.1M": (65, {"n_layer": 2, "n_head": 2, "n_embd": 64, "block_size": 64, "batch_size": 16}, 800),
    "0.8M": (65, {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12}, 250),
    "1.2M": (65, {"n_layer": 6, "n_head": 4, "n_embd": 128, "block_size": 128, "batch_size": 8}, 120),
    "1.8M, vocabulary 8192": (8192, {"n_layer": 4, "n_head": 4, "n_embd": 128, "block_size": 64, "batch_size": 12}, 80),
    "2.7M": (65, {"n_layer": 6, "n_head": 6, "n_embd": 192, "block_size": 128, "batch_size": 8}, 60),
    "4.8M": (256, {"n_layer": 6, "n_head": 8, "n_embd": 256, "block_size": 64, "batch_size": 8}, 75),
    "10.7M": (65, {"n_layer": 6, "n_head": 6, "n_embd": 384, "block_size": 256, "batch_size": 2}, 40),
    "14.4M": (512, {"n_layer": 8, "n_head": 6, "n_embd": 384, "block_size": 64, "batch_size": 4}, 50),
}


@dataclass(frozen=True)
class Run:
    """One model's run: what was predicted and what it took, in CPU seconds."""

    name: str
    needs: Needs
    predicted: float
    true: float
    true_step: float

    @property
    def error(self) -> float:
        return self.predicted / self.true - 1


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="three models, a third of the steps")
    quick = parser.parse_args().quick
    names = list(MODELS)[1::3] if quick else list(MODELS)
    local = next(offer for offer in with_own_machine(load_catalog()) if offer.pool == "local")

    runs = []
    for name in names:
        vocabulary, shape, steps = MODELS[name]
        runs.append(measure(name, vocabulary, shape, max(20, steps // 3) if quick else steps, local))
        line = f"{name}: predicted {runs[-1].predicted:.1f}, true {runs[-1].true:.1f} CPU s: {runs[-1].error:+.1%}"
        print(line, flush=True)

    probed = [abs(run.error) for run in runs]
    from_others = [from_history(known, asked, local) for known, asked in itertools.permutations(runs, 2)]
    figures = {
        "runs": [
            {"model": run.name, "parameters": run.needs.parameters, "predicted": run.predicted, "true": run.true}
            for run in runs
        ],
        "probe_median_error": statistics.median(probed),
        "probe_worst_error": max(probed),
        "history_median_error": statistics.median(from_others),
        "history_worst_error": max(from_others),
    }
    print(f"with a probe: median {figures['probe_median_error']:.1%}, worst {figures['probe_worst_error']:.1%}")
    print(
        f"from another model's history: median {figures['history_median_error']:.1%}, "
        f"worst {figures['history_worst_error']:.1%} over {len(from_others)} pairs"
    )
    if not quick:
        print(write_result("estimate_accuracy", figures))


def measure(name: str, vocabulary: int, shape: dict[str, Any], steps: int, local: Offer) -> Run:
    """Predict a run with a probe, then do it."""
    settings = {
        "device": "cpu",
        "threads": 1,
        "max_iters": steps,
        "eval_interval": max(20, steps // 2),
        "eval_iters": 5,
    }
    config = TrainConfig.parse({**shape, **settings, "warmup_iters": 10, "checkpoint_interval_seconds": 600})
    needs = needs_of(config, vocabulary, val_tokens=VAL_TOKENS)
    found = probe(needs)
    parts = estimate(needs, local, found.speed(cpu_seconds=True)).breakdown
    rest = found.fixed_cpu_seconds + parts.evaluation
    predicted = rest + parts.training
    with tempfile.TemporaryDirectory() as folder:
        true = cpu_seconds_of_training(config, vocabulary, Path(folder))
    return Run(name, needs, predicted, true, (true - rest) / steps)


def cpu_seconds_of_training(config: TrainConfig, vocabulary: int, folder: Path) -> float:
    """CPU seconds that the system charges the trainer's process, from its start to its exit."""
    (folder / "config.json").write_text(config.model_dump_json())
    write_tokens(folder / "data", vocabulary)
    command = [sys.executable, "-m", "crucible.training", "--config", str(folder / "config.json")]
    command += ["--data", str(folder / "data"), "--out", str(folder / "out")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"the trainer failed: {errors.decode()[-500:]}")
    return used.ru_utime + used.ru_stime


def write_tokens(folder: Path, vocabulary: int) -> None:
    """A dataset of random tokens, with a validation split of known size."""
    folder.mkdir()
    rng = np.random.default_rng(1)
    splits = {}
    for split, count in (("train", 1 << 17), ("val", VAL_TOKENS)):
        file = f"{split}-00000.bin"
        rng.integers(0, vocabulary, count).astype("<u2").tofile(folder / file)
        splits[split] = {"tokens": count, "bytes": count, "shards": [{"file": file, "tokens": count, "sha256": ""}]}
    meta = {"schema_version": 1, "digest": "random", "source": {"kind": "random"}, "dtype": "uint16", "splits": splits}
    meta |= {"tokenizer": {"kind": "none", "file": "", "sha256": ""}, "vocab_size": vocabulary}
    (folder / "meta.json").write_text(json.dumps(meta))


def from_history(known: Run, asked: Run, local: Offer) -> float:
    """Error of the speed that one model's history predicts for another."""
    record = speed_record(known.needs, local, known.true_step, known.needs.steps)
    speed = speed_on(local, asked.needs, [record])
    assert speed is not None
    return abs(speed.seconds_per_step / asked.true_step - 1)


if __name__ == "__main__":
    main()
