"""What this process may use of the machine it is on, as far as it can be known before torch is imported."""

from __future__ import annotations

import os
from pathlib import Path

import psutil

__all__ = ["available_memory_bytes", "may_compute_on_cpu", "usable_cpus"]


def may_compute_on_cpu(device: str) -> bool:
    """Whether the config's `device` can mean the CPU here: not on `cuda`, nor on `auto` beside an NVIDIA driver."""
    return device != "cuda" and not (device == "auto" and Path("/dev/nvidiactl").exists())


def usable_cpus() -> int:
    """How many CPUs this process may run on: `taskset` and a container's cpuset count."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def available_memory_bytes(mount: Path = Path("/sys/fs/cgroup"), own: Path = Path("/proc/self/cgroup")) -> float:
    """How much more memory this process can use: what the machine has free, within the limits of its container.

    psutil sees the host only. A control group's limit leaves `limit - current`, and its file cache can be given back.
    """
    available = float(psutil.virtual_memory().available)
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return available
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers == "":  # version 2
            root, limit, current, cache = mount, "memory.max", "memory.current", "inactive_file"
        elif "memory" in controllers.split(","):
            root, limit, current = mount / "memory", "memory.limit_in_bytes", "memory.usage_in_bytes"
            cache = "total_inactive_file"
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):  # every group above limits this one as well
            available = min(available, _left(folder, limit, current, cache))
            if folder == root:
                break
    return max(available, 0.0)


def _left(group: Path, limit: str, current: str, cache: str) -> float:
    """Infinite where the group has no limit, or is not visible from inside its container."""
    try:
        used = int((group / current).read_text()) - int(_field(group / "memory.stat", cache))
        return int((group / limit).read_text()) - used
    except (OSError, ValueError):
        return float("inf")


def _field(file: Path, name: str) -> str:
    values = dict(line.split(maxsplit=1) for line in file.read_text().splitlines())
    return values.get(name, "0")
