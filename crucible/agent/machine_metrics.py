"""How busy the machine is while an attempt trains: lines of metrics every few seconds, for the report's curves."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import psutil

from crucible.agent.nvml import Nvml, visible_gpus

SAMPLE_SECONDS = 10.0


def machine_sampler(visible: str | None = None, nvml: Nvml | None = None) -> Callable[[], dict[str, float]]:
    """A function that says how busy the machine is: its GPUs, or without one its CPUs and memory.

    `visible`: as CUDA_VISIBLE_DEVICES; None: as it is set. `nvml`: None loads it.
    """
    visible = visible_gpus() if visible is None else visible
    nvml = nvml or Nvml.load()
    if nvml is not None and nvml.handles(visible):
        return partial(nvml.sample, visible)
    psutil.cpu_percent()  # each call measures the time since the one before
    return _cpu_sample


def _cpu_sample() -> dict[str, float]:
    return {
        "cpu_utilisation_percent": psutil.cpu_percent(),
        "memory_gib": round(psutil.virtual_memory().used / 2**30, 2),
    }
