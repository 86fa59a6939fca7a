"""How many rows of a step are computed at a time: as many as fit a GPU, fewer after it ran out of memory.

The rows of a step, and the weight of each in the loss, do not depend on how they are cut.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from crucible.contract import STATE_FILE

__all__ = ["MOST_TOKENS", "largest_divisor", "out_of_memory", "recorded_environment", "rows_that_fit"]

_MEASURED_TOKENS = 8192
MOST_TOKENS = 1 << 17
"""At a time: more would not be faster, and some kernels count elements in 32 bits."""
_SHARE = 0.85
"""Of the free memory: compiled and deterministic kernels do not take what was measured with others."""
_GIB = 2**30


def largest_divisor(rows: int, at_most: int) -> int:
    """The largest number up to `at_most` that divides `rows`: micro-batches of one size are compiled once."""
    return next(size for size in range(min(rows, max(at_most, 1)), 0, -1) if rows % size == 0)


def rows_that_fit(limit: int, block_size: int, peak_bytes: Callable[[int], int], free_bytes: int) -> int:
    """How many rows fit `free_bytes`, from the peaks of two small micro-batches; at least 1, at most `limit`.

    `peak_bytes(rows)` computes a micro-batch and returns what it took at most; it may raise torch.OutOfMemoryError.
    """
    few = min(max(1, _MEASURED_TOKENS // block_size), max(1, limit // 2))
    try:
        one, two = peak_bytes(few), peak_bytes(2 * few)
    except torch.OutOfMemoryError:
        return max(1, few // 2)
    if two <= one:
        return limit
    fitting = few + int((_SHARE * free_bytes - one) / (two - one) * few)
    return min(max(1, fitting), limit)


def recorded_environment(folder: Path | None) -> dict[str, Any]:
    """The environment record of the checkpoint to resume; empty if there is none. Nothing is verified here."""
    try:
        environment = json.loads((folder / STATE_FILE).read_text(encoding="utf-8"))["environment"] if folder else {}
    except (OSError, ValueError, KeyError, TypeError):
        return {}  # damaged: reading its state raises
    return environment if isinstance(environment, dict) else {}


def out_of_memory(error: torch.OutOfMemoryError, device: torch.device) -> str:
    """What was needed and what was free, as far as it is known."""
    asked = re.search(r"[Tt]ried to allocate ([0-9.]+ [KMG]iB)", str(error))
    needed = f"{asked[1]} more were needed" if asked else "more was needed"
    if device.type != "cuda":
        return needed
    free, total = torch.cuda.mem_get_info(device)
    unused = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return f"{needed}, {(free + unused) / _GIB:.2f} of {total / _GIB:.2f} GiB were free"
