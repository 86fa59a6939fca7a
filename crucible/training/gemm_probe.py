"""Measure float32 matrix products: `python -m crucible.training.gemm_probe [FOLDER]`, with the shim from FOLDER.

Prints one JSON line of GFLOPS, a way that gives a wrong product left out. Run by `gemm` in a process of its own: if a
way crashes on some processor, it crashes here.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable
from pathlib import Path

from crucible.training import mkl_shim

ROWS, WIDTH_IN, WIDTH_OUT = 768, 128, 512  # the widest layer of the cpu-small preset: 0.1 GFLOP, about a millisecond
REPEATS = 25


def main() -> None:
    """Measure what this process can do."""
    if len(sys.argv) > 1:
        mkl_shim.load(Path(sys.argv[1]))
    import torch  # after the shim

    from crucible.training.linear import onednn_linear

    torch.set_num_threads(1)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(ROWS, WIDTH_IN, generator=generator)
    weight = torch.randn(WIDTH_OUT, WIDTH_IN, generator=generator)
    exact = x.double() @ weight.double().t()

    def gflops(multiply: Callable[[], torch.Tensor]) -> float | None:
        if not torch.allclose(multiply().double(), exact, rtol=1e-4, atol=1e-3):
            return None
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            multiply()
            seconds.append(time.perf_counter() - start)
        return 2e-9 * ROWS * WIDTH_IN * WIDTH_OUT / min(seconds)  # the least: everything above it is other processes

    ways: dict[str, Callable[[], torch.Tensor]] = {
        "mkl": lambda: torch.nn.functional.linear(x, weight),
        "onednn": lambda: onednn_linear(x, weight),
    }
    measured = {name: gflops(multiply) for name, multiply in ways.items()}
    print(json.dumps({name: round(value, 1) for name, value in measured.items() if value is not None}))


if __name__ == "__main__":
    main()
