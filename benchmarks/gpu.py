"""GPT-2 124M on one GPU: our trainer against a loop as nanoGPT writes it (`fair_loop`), and what exactness costs.

    python -m benchmarks.gpu [--json] [--seconds 340]
    python -m benchmarks.gpu --shakespeare TEXT     nanoGPT's shakespeare_char run: its best validation loss
    python -m benchmarks.gpu --device cpu --tiny    a model of no size, to see that the script works

Half a million tokens per step, bfloat16, the same rows. Each way runs in processes of its own, one at a time, since
ours takes what memory there is; they alternate. The first process of a way compiles from nothing (`cold`), the second
finds torch's cache (`warm`). Then a small model is trained twice, once with two SIGKILLs: its weights must be equal.
Parts that the time does not allow are left out, and named. Speed-ups compare medians over all steps of a way.

It takes under six minutes on an H100 by design. NOT YET TAKEN: no GPU was at hand when this was written.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.killed_run import train
from benchmarks.results import write_result
from crucible.config import TrainConfig
from crucible.estimate.needs import flops_per_token
from crucible.training.self_test import peak_tflops

VOCABULARY = 50257
SEED_SPEEDUP = 1.2
NANOGPT_SHAKESPEARE = 1.4697
"""Best validation loss of config/train_shakespeare_char.py by nanoGPT's README."""

GPT2 = TrainConfig.preset("gpt2-124m", device="cuda", dtype="bfloat16", exact="required")
TINY = TrainConfig.preset(
    "debug", n_layer=2, n_embd=32, n_head=2, block_size=32, batch_size=4, device="cpu"
).with_overrides(
    {"gradient_accumulation_steps": 2, "chunked_loss": "on", "fast_gemm": "off", "threads": 1, "micro_batch": 8}
)
KILLED = TrainConfig(
    n_layer=4,
    n_head=4,
    n_embd=256,
    block_size=1024,
    batch_size=16,
    max_iters=300,
    warmup_iters=20,
    eval_interval=10_000,
    eval_iters=1,
    log_interval=1,
    checkpoint_interval_seconds=1.0,
    compile=True,
    device="cuda",
    exact="required",
    chunked_loss="on",
)

WAYS: dict[str, dict[str, Any]] = {
    "ours": {},
    "fair loop": {},
    "ours, exact = off": {"exact": "off"},
    "ours, 12 rows at a time": {"micro_batch": 12},
    "ours, eager": {"compile": False},
    "fair loop, eager": {"compile": False},
}
ORDER = ["ours", "fair loop", "ours", "fair loop", "killed", "ours, exact = off", "ours, eager", "fair loop, eager"]
ORDER += ["ours, 12 rows at a time", "fair loop", "ours"]
TINY_ORDER = ["ours", "fair loop", "killed"]


def main() -> None:
    """Run the benchmark; prints a table, or with --json one line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", action="store_true", help="print one line of JSON only")
    parser.add_argument("--seconds", type=float, default=340.0, help="begin nothing new after so long")
    parser.add_argument("--steps", type=int, default=6, help="timed steps of each process")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--tiny", action="store_true", help="a model of no size: to see that the script works")
    parser.add_argument("--shakespeare", type=Path, metavar="TEXT", help="train shakespeare-char on tiny Shakespeare")
    parser.add_argument("--worker", nargs=4, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        way, config, folder, steps = options.worker
        work(way, TrainConfig.parse(json.loads(config)), Path(folder), int(steps))
        return
    if options.shakespeare:
        print(json.dumps(shakespeare(options.shakespeare)))
        return
    tiny = options.tiny
    figures = measure(tiny, options.device, options.seconds, 2 if tiny else options.steps)
    if not tiny:
        print(write_result("gpu", figures), file=sys.stderr)
    if options.json:
        print(json.dumps(figures))
    else:
        show(figures)


def measure(tiny: bool, device: str, seconds: float, steps: int) -> dict[str, Any]:
    """All parts that begin within `seconds`."""
    began = time.monotonic()
    base = TINY if tiny else GPT2.with_overrides({"device": device})
    order = TINY_ORDER if tiny else ORDER
    runs: dict[str, list[dict[str, Any]]] = {}
    killed, left_out = None, []
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_dataset(folder, 512 if tiny else VOCABULARY)
        for part in order:
            if time.monotonic() - began > seconds:
                left_out.append(part)
            elif part == "killed":
                killed = killed_run(folder, tiny)
            else:
                found = run_worker(part, base.with_overrides(WAYS[part]), folder, steps)
                runs.setdefault(part, []).append(found)
    return {
        "card": next(iter(runs.values()))[0]["card"],
        "ways": summary(runs, base, 512 if tiny else VOCABULARY),
        "killed_run": killed,
        "left_out": left_out,
        "seconds": round(time.monotonic() - began, 1),
    }


def run_worker(way: str, config: TrainConfig, folder: Path, steps: int) -> dict[str, Any]:
    """One process of one way. Raises SystemExit if it fails."""
    command = [
        sys.executable,
        "-m",
        "benchmarks.gpu",
        "--worker",
        way,
        config.model_dump_json(),
        str(folder),
        str(steps),
    ]
    cache = {"TORCHINDUCTOR_CACHE_DIR": str(folder / "compiled" / way.replace(" ", "-"))}
    done = subprocess.run(command, env={**os.environ, **cache}, stdout=subprocess.PIPE, text=True, check=False)
    if done.returncode:
        raise SystemExit(f"{way} failed; its message is above")
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


def work(way: str, config: TrainConfig, folder: Path, steps: int) -> None:
    """The process's side: set up, compile, warm up for two steps, then time `steps` of them."""
    import torch

    from crucible.training.data import Dataset
    from crucible.training.trainer import Trainer

    device = torch.device(config.device)
    wait = torch.cuda.synchronize if device.type == "cuda" else (lambda: None)
    dataset = Dataset(folder)
    began = time.perf_counter()
    micro_batch, exact = config.batch_size, False
    if way.startswith("ours"):
        trainer = Trainer(config, dataset, log=lambda line: print(line, file=sys.stderr))
        trainer.model.train()
        micro_batch, exact = trainer.micro_batch, bool(trainer.environment.get("exact", device.type == "cpu"))
        losses: list[float] = []

        def step() -> None:
            trainer.train_step()

        def loss() -> float:
            return trainer.means.read(trainer.step)[0]

    else:
        from benchmarks.fair_loop import FairLoop

        loop = FairLoop(config, folder / "train-00000.bin", dataset.vocab_size, device)
        losses = []
        newest = torch.zeros(())

        def step() -> None:
            nonlocal newest
            newest = loop.step()

        def loss() -> float:
            return float(newest)

    step()
    wait()
    first_step_seconds = time.perf_counter() - began
    losses.append(loss())
    step()
    losses.append(loss())
    wait()
    times = []
    for _ in range(steps):
        began = time.perf_counter()
        step()
        wait()
        times.append(time.perf_counter() - began)
        losses.append(loss())
    on_gpu = device.type == "cuda"
    print(
        json.dumps(
            {
                "card": torch.cuda.get_device_name() if on_gpu else "CPU",
                "seconds": times,
                "losses": losses,
                "first_step_seconds": first_step_seconds,
                "peak_gib": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
                "micro_batch": micro_batch,
                "exact": exact,
            }
        )
    )


def killed_run(folder: Path, tiny: bool) -> dict[str, Any]:
    """Train undisturbed, and with two SIGKILLs (one in the tiny run)."""
    changes = {"max_iters": 60, "warmup_iters": 5, "log_interval": 1, "checkpoint_interval_seconds": 0.05}
    config = TINY.with_overrides({**changes, "eval_interval": 1000}) if tiny else KILLED
    undisturbed = train(config, folder, folder / "undisturbed")
    killed = train(config, folder, folder / "killed", kill_at=[20] if tiny else [100, 200])
    return {
        "equal": undisturbed["weights_sha256"] == killed["weights_sha256"],
        "kills": 1 if tiny else 2,
        "weights_sha256": killed["weights_sha256"],
        "seconds_of_each_start": killed["seconds"],
    }


def summary(runs: dict[str, list[dict[str, Any]]], config: TrainConfig, vocab_size: int) -> dict[str, Any]:
    """A row for each way."""
    rows = {}
    medians = {way: statistics.median(s for run in found for s in run["seconds"]) for way, found in runs.items()}
    tokens = config.batch_size * config.gradient_accumulation_steps * config.block_size
    peak = peak_tflops(next(iter(runs.values()))[0]["card"])
    reference = runs.get("fair loop", runs["ours"])[0]["losses"]
    for way, found in runs.items():
        speed = tokens / medians[way]
        tflops = 1e-12 * flops_per_token(config, vocab_size) * speed
        loop = "fair loop, eager" if way == "ours, eager" else "fair loop"
        rows[way] = {
            "tokens_per_second": round(speed),
            "speedup_over_fair_loop": round(medians[loop] / medians[way], 3) if loop in medians else None,
            "median_seconds_per_step": round(medians[way], 5),
            "model_flops_utilisation": round(tflops / peak, 3) if peak else None,
            "peak_gib": found[0]["peak_gib"] and round(found[0]["peak_gib"], 2),
            "until_first_step_seconds": {
                "cold": round(found[0]["first_step_seconds"], 1),
                "warm": round(found[1]["first_step_seconds"], 1) if len(found) > 1 else None,
            },
            "micro_batch": found[0]["micro_batch"],
            "exact": found[0]["exact"],
            "largest_loss_difference": max(abs(a - b) for a, b in zip(found[0]["losses"], reference, strict=True)),
            "processes": len(found),
        }
    if "ours, exact = off" in medians:
        rows["ours"]["price_of_exactness"] = round(medians["ours"] / medians["ours, exact = off"] - 1, 3)
    return rows


def shakespeare(text: Path) -> dict[str, Any]:
    """nanoGPT's shakespeare_char run, by the bare trainer; the loss that its README compares is an estimate."""
    with tempfile.TemporaryDirectory() as name:
        command = [sys.executable, "-m", "crucible.training", "--preset", "shakespeare-char", "--text", str(text)]
        began = time.perf_counter()
        subprocess.run(
            [*command, "--out", name, "--json", "--set", "device=cuda"], check=True, stdout=subprocess.DEVNULL
        )
        seconds = time.perf_counter() - began
        lines = [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()]
    estimates = [line["val_loss"] for line in lines if "train_loss_estimate" in line and "val_loss" in line]
    training = sum(line["seconds_per_step"] for line in lines if "seconds_per_step" in line) * 10  # log_interval
    best = min(estimates)
    return {
        "best_val_loss": round(best, 4),
        "nanogpt": NANOGPT_SHAKESPEARE,
        "difference": round(best / NANOGPT_SHAKESPEARE - 1, 4),
        "seconds": round(seconds, 1),
        "training_seconds": round(training, 1),
    }


def write_dataset(folder: Path, vocab_size: int) -> None:
    """Two million tokens in which each follows from the one before in one of eight ways: something to learn."""
    generator = np.random.default_rng(0)
    splits = {}
    for name, count in (("train", 2_000_000), ("val", 100_000)):
        tokens = (np.cumsum(generator.integers(1, 9, count)) % vocab_size).astype("<u2")
        (folder / f"{name}-00000.bin").write_bytes(tokens.tobytes())
        splits[name] = {"tokens": count, "bytes": count, "shards": [{"file": f"{name}-00000.bin", "tokens": count}]}
    meta = {"schema_version": 1, "digest": "benchmark", "vocab_size": vocab_size, "dtype": "uint16", "splits": splits}
    (folder / "meta.json").write_text(json.dumps(meta))


def show(figures: dict[str, Any]) -> None:
    """Print the table."""
    print(f"{figures['card']}, {figures['seconds']:.0f} s")
    for way, row in figures["ways"].items():
        utilisation, peak = row["model_flops_utilisation"], row["peak_gib"]
        print(
            f"  {way:26s} {row['tokens_per_second']:>9,} tok/s  {row['speedup_over_fair_loop'] or 0:5.2f}x  "
            f"MFU {utilisation if utilisation is not None else '–'}  peak {peak if peak is not None else '–'} GiB  "
            f"{row['micro_batch']} rows at a time  {'exact' if row['exact'] else 'not exact'}  "
            f"first step after {row['until_first_step_seconds']}  loss differs by {row['largest_loss_difference']:.1e}"
        )
    if "price_of_exactness" in figures["ways"]["ours"]:
        print(f"  exactness costs {figures['ways']['ours']['price_of_exactness']:+.1%} of a step")
    if figures["killed_run"]:
        print(f"  killed run equal: {figures['killed_run']['equal']}")
    if figures["left_out"]:
        print(f"  left out for lack of time: {', '.join(figures['left_out'])}")


if __name__ == "__main__":
    main()
