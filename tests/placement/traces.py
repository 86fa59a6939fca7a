"""Spot availability for tests: synthetic runs with heavy tails, and where the public traces are."""

from __future__ import annotations

import json
import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

PUBLIC_TRACES = Path(os.environ.get("SPOT_TRACES", "spot-traces"))
"""A checkout of github.com/skypilot-org/spot-traces; the test that replays them is skipped without it."""
TICK_SECONDS = 195.0


def heavy_tailed(ticks: int, mean_up: float, mean_down: float, seed: int, shape: float = 1.5) -> NDArray[np.bool_]:
    """Alternating Pareto runs; means in ticks."""
    rng = np.random.default_rng(seed)
    available = np.zeros(ticks, dtype=np.bool_)
    at, up = 0, bool(rng.random() < mean_up / (mean_up + mean_down))
    while at < ticks:
        length = 1 + int((mean_up if up else mean_down) * (shape - 1) * rng.pareto(shape))
        available[at : at + length] = up
        at, up = at + length, not up
    return available


def write_trace(file: Path, available: NDArray[np.bool_]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    content = {"metadata": {"gap_seconds": TICK_SECONDS}, "data": available.astype(int).tolist()}
    file.write_text(json.dumps(content), encoding="utf-8")
