"""Measure oneMKL's float32 products with and without the shim: `python -m crucible.training.cpu.gemm_probe`.

Prints one JSON line: GFLOPS per core of either way, and the shim's gain. Each has a process of its own: the shim must
be loaded before torch's library, and a crash on some processor happens here. They take turns of about ten milliseconds,
and the gain is the median over the turns, so that a drifting machine is compared with itself. Only the library is
loaded, not torch, which would take longer than the measurement.
"""

from __future__ import annotations

import ctypes
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from importlib.metadata import distribution

import numpy as np

from crucible.training.cpu import mkl_shim

ROWS, WIDTH_IN, WIDTH_OUT = 768, 128, 512  # the widest layer of the cpu-small preset: 0.1 GFLOP, about a millisecond
FLOP = 2 * ROWS * WIDTH_IN * WIDTH_OUT
TURNS, REPEATS = 40, 8


def main() -> None:
    """Measure both ways; or, as the second process, with the shim, a turn for every line of standard input."""
    if sys.argv[1:]:
        mkl_shim.load()
        turn = product_of_onemkl()
        for _ in sys.stdin:
            print(turn(), flush=True)
    else:
        print(json.dumps(compare()))


def compare() -> dict[str, float]:
    """GFLOPS per core as `mkl` and `shim`, and `gain`. Raises ValueError if the other process has ended."""
    command = [sys.executable, "-m", "crucible.training.cpu.gemm_probe", "shim"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1) as other:
        assert other.stdin is not None
        assert other.stdout is not None
        ask, answer = other.stdin, other.stdout

        def with_shim() -> float:
            ask.write("\n")
            return float(answer.readline())

        without = product_of_onemkl()
        turns = [(without(), with_shim()) for _ in range(TURNS)]
        ask.close()
    plain, shim = (FLOP / 1e9 / min(seconds) for seconds in zip(*turns, strict=True))
    gain = statistics.median(before / after for before, after in turns)
    return {"mkl": round(plain, 1), "shim": round(shim, 1), "gain": round(gain, 3)}


def product_of_onemkl() -> Callable[[], float]:
    """A function that multiplies some times and returns the seconds of the fastest, as a linear layer multiplies.

    Raises OSError or AttributeError where torch has no oneMKL, and ArithmeticError if it gives a wrong product.
    """
    library = ctypes.CDLL(str(distribution("torch").locate_file("torch/lib/libtorch_cpu.so")))
    generator = np.random.default_rng(0)
    x = generator.standard_normal((ROWS, WIDTH_IN), dtype=np.float32)
    weight = generator.standard_normal((WIDTH_OUT, WIDTH_IN), dtype=np.float32)
    y = np.zeros((ROWS, WIDTH_OUT), dtype=np.float32)
    inner, rows, out = (ctypes.byref(ctypes.c_int(size)) for size in (WIDTH_IN, ROWS, WIDTH_OUT))
    one, zero = (ctypes.byref(ctypes.c_float(factor)) for factor in (1, 0))
    w_at, x_at, y_at = (matrix.ctypes.data_as(ctypes.c_void_p) for matrix in (weight, x, y))  # which also keeps them

    def multiply() -> None:
        # BLAS counts columns first: for it this is y' = weight x', with weight to be transposed.
        library.sgemm_(b"T", b"N", out, rows, inner, one, w_at, inner, x_at, inner, zero, y_at, out)

    multiply()
    if not np.allclose(y, x.astype(np.float64) @ weight.astype(np.float64).T, rtol=1e-4, atol=1e-3):
        raise ArithmeticError("oneMKL gives a wrong product")

    def turn() -> float:
        seconds = []
        for _ in range(REPEATS):
            start = time.perf_counter()
            multiply()
            seconds.append(time.perf_counter() - start)
        return min(seconds)  # everything above it is other processes

    return turn


if __name__ == "__main__":
    main()
