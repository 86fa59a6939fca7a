"""Evaluate a checkpoint and export its model.

    python -m crucible.evaluation --checkpoint FOLDER --data DATASET_FOLDER --out DIR [--formats huggingface,nanogpt]

DIR gets README.md (the model card), samples.txt, metrics.json, and the exports: what `transformers` reads at the top,
nanoGPT's `nanogpt/ckpt.pt` below. Exit code 0: done; 1: failed, the last line says why.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from crucible.errors import ConfigError, CrucibleError
from crucible.training.hardware import may_compute_on_cpu
from crucible.workload.stop import leave


def main(arguments: list[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    options = _parser().parse_args(arguments)
    try:
        if may_compute_on_cpu(options.device) and "torch" not in sys.modules:  # once it is, nothing can be chosen
            from crucible.training import cpu

            cpu.choose_gemm("auto")
        from crucible.evaluation.evaluate import Request, evaluate  # after the usage message: torch takes seconds

        request = Request(
            checkpoints=options.checkpoint,
            data=options.data,
            out=options.out,
            formats=[name.strip() for name in options.formats.split(",") if name.strip()],
            samples=options.samples,
            sample_tokens=options.tokens,
            prompt=options.prompt,
            temperature=options.temperature,
            seed=options.seed,
            device=options.device,
            job=_job(options.job),
        )
        metrics = evaluate(request, log=_log)
    except CrucibleError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    _log(
        f"step {metrics['step']}: loss {metrics['val_loss']:.4f}, perplexity {metrics['perplexity']:.3f}, "
        f"{metrics['bits_per_byte']:.4f} bits per byte; everything is in {options.out}"
    )
    if options.json:
        print(json.dumps(metrics, ensure_ascii=False), flush=True)
    return 0


def _parser() -> argparse.ArgumentParser:
    description, _, _ = (__doc__ or "").partition("\n")
    parser = argparse.ArgumentParser("python -m crucible.evaluation", description=description)
    parser.add_argument(
        "--checkpoint", type=Path, required=True, nargs="+", help="checkpoint folder; of several, the best is exported"
    )
    parser.add_argument("--data", type=Path, required=True, help="dataset folder")
    parser.add_argument("--out", type=Path, required=True, help="folder for the results")
    parser.add_argument("--formats", default="huggingface", help="huggingface, nanogpt, both with a comma, or empty")
    parser.add_argument("--samples", type=int, default=3, help="how many texts to generate")
    parser.add_argument("--tokens", type=int, default=300, help="tokens in each of them")
    parser.add_argument("--prompt", default="", help="what they begin with")
    parser.add_argument("--temperature", type=float, default=0.8, help="0 always takes the likeliest token")
    parser.add_argument("--seed", type=int, default=1337, help="the same seed gives the same texts")
    parser.add_argument("--device", default="auto", choices=["auto", "cpu", "cuda"])
    parser.add_argument("--job", type=Path, help="JSON file with facts about the training for the model card")
    parser.add_argument("--json", action="store_true", help="end with one line of JSON on stdout")
    return parser


def _job(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(f"--job {path} cannot be read: {error}") from error
    if not isinstance(content, dict):
        raise ConfigError(f"--job {path} holds no JSON object")
    return content


def _log(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


if __name__ == "__main__":
    leave(main())
