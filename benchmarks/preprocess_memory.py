"""Peak memory of preprocessing must not grow with the text.

    python -m benchmarks.preprocess_memory            # 100 MB and 1 GB, char and bpe; about 6 minutes on one core
    python -m benchmarks.preprocess_memory --quick    # 10 and 50 MB

Each measurement is a process of its own that makes a dataset of generated text in a `file://` store, as the flow does,
and reports its highest resident set. Exits 1 when the larger text takes over 10 % more memory than the smaller.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import random
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

RESULT = Path(__file__).parent / "results" / "preprocess_memory.json"
ALLOWED_GROWTH = 1.10

CHILD = """
import json, resource, sys, time
from crucible.datasets.build import build_dataset
from crucible.datasets.config import DatasetConfig
from crucible.store import Store, store_at
start = time.perf_counter()
info = build_dataset(DatasetConfig(source=sys.argv[1], tokenizer=sys.argv[2]), store_at(sys.argv[3]))
unit = 1 if sys.platform == "darwin" else 1024
print(json.dumps({
    "tokenizer": sys.argv[2],
    "text_mb": info.meta.text_bytes / 1e6,
    "tokens": info.meta.tokens,
    "shards": sum(len(split.shards) for split in info.meta.splits.values()),
    "seconds": round(time.perf_counter() - start, 1),
    "peak_mb": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit / 1e6, 1),
}))
"""


def write_text(path: Path, megabytes: int) -> None:
    """Lines of words drawn by a power law from 50,000, some not ASCII: new words keep coming, as in real text."""
    draw = random.Random(1)
    letters = "etaoinshrdlucmfwypvbgkqjxzéöß日語"
    words = ["".join(draw.choices(letters, k=draw.randint(2, 11))) for _ in range(50_000)]
    weights = [1 / rank for rank in range(1, len(words) + 1)]
    with path.open("w", encoding="utf-8") as file:
        while file.tell() < megabytes * 1_000_000:
            chosen = draw.choices(words, weights, k=120_000)
            file.writelines(" ".join(chosen[i : i + 12]) + ".\n" for i in range(0, len(chosen), 12))


def measure(text: Path, tokenizer: str, scratch: Path) -> dict[str, Any]:
    """One dataset in a fresh process with a fresh home and store."""
    with tempfile.TemporaryDirectory(dir=scratch) as home:
        done = subprocess.run(
            [sys.executable, "-c", CHILD, str(text), tokenizer, f"{home}/store"],
            env={**os.environ, "CRUCIBLE_HOME": home},
            check=True,
            capture_output=True,
            text=True,
        )
    result: dict[str, Any] = json.loads(done.stdout)
    result["mb_per_second"] = round(result["text_mb"] / result["seconds"], 1)
    return result


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--quick", action="store_true", help="10 and 50 MB; writes no result file")
    parser.add_argument("--scratch", type=Path, help="folder for up to 4 GB; default: the system's temporary folder")
    arguments = parser.parse_args()
    sizes = [10, 50] if arguments.quick else [100, 1000]
    rows, ratios = [], {}
    with tempfile.TemporaryDirectory(dir=arguments.scratch) as scratch:
        texts = {size: Path(scratch) / f"text-{size}.txt" for size in sizes}
        for size, path in texts.items():
            write_text(path, size)
        for tokenizer in ("char", "bpe"):
            for path in texts.values():
                rows.append(measure(path, tokenizer, Path(scratch)))
                print(
                    "{tokenizer:<5} {text_mb:6.0f} MB  peak {peak_mb:6.1f} MB  {mb_per_second:6.1f} MB/s".format(
                        **rows[-1]
                    )
                )
            small, large = rows[-2:]
            ratios[tokenizer] = round(large["peak_mb"] / small["peak_mb"], 3)
            print(f"{tokenizer:<5} peak of the larger over the smaller: {ratios[tokenizer]}")
    if not arguments.quick:
        RESULT.parent.mkdir(parents=True, exist_ok=True)
        result = {
            "schema_version": 1,
            "benchmark": "preprocess_memory",
            "date": time.strftime("%Y-%m-%d", time.gmtime()),
            "machine": f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}",
            "rows": rows,
            "peak_ratio": ratios,
        }
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    return 0 if all(ratio <= ALLOWED_GROWTH for ratio in ratios.values()) else 1


if __name__ == "__main__":
    sys.exit(main())
