"""What can be known of this machine's processor before torch is imported."""

from __future__ import annotations

import platform
from pathlib import Path

__all__ = ["cpu_info", "cpu_model", "may_compute_on_cpu"]


def may_compute_on_cpu(device: str) -> bool:
    """Whether the config's `device` can mean the CPU here: not on `cuda`, nor on `auto` beside an NVIDIA driver."""
    return device != "cuda" and not (device == "auto" and Path("/dev/nvidiactl").exists())


def cpu_model() -> str:
    """The processor's name, as far as the system reports one."""
    return cpu_info().get("model name") or platform.processor() or platform.machine()


def cpu_info() -> dict[str, str]:
    """The first processor's lines of /proc/cpuinfo; empty where there is none."""
    try:
        first = Path("/proc/cpuinfo").read_text(encoding="utf-8").split("\n\n")[0]
    except OSError:
        return {}
    return {key.strip(): value.strip() for key, _, value in (line.partition(":") for line in first.splitlines())}
