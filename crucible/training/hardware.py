"""What can be known of the machine before torch is imported."""

from __future__ import annotations

from pathlib import Path

__all__ = ["may_compute_on_cpu"]


def may_compute_on_cpu(device: str) -> bool:
    """Whether the config's `device` can mean the CPU here: not on `cuda`, nor on `auto` beside an NVIDIA driver."""
    return device != "cuda" and not (device == "auto" and Path("/dev/nvidiactl").exists())
