"""What this process may use of its machine: within the limits of its container, which psutil does not see."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from pathlib import Path

import psutil

__all__ = ["available_memory_bytes", "total_memory_bytes", "usable_cpus"]

_MOUNT, _OWN = Path("/sys/fs/cgroup"), Path("/proc/self/cgroup")
_MEMORY_FILES = {
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    2: ("memory.max", "memory.current", "inactive_file"),
}
"""By the version of control groups: the limit, what is used, and the field of memory.stat that can be given back."""


def usable_cpus(mount: Path = _MOUNT, own: Path = _OWN) -> int:
    """How many CPUs this process may use: `taskset`, a container's cpuset and its share of CPU time count."""
    there = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = (_cpu_share(group, version) for group, version in _groups("cpu", mount, own))
    return max(1, math.ceil(min([there, *shares])))


def total_memory_bytes(mount: Path = _MOUNT, own: Path = _OWN) -> float:
    """The machine's memory, or the least that a control group around this process allows."""
    limits = (_number(group / _MEMORY_FILES[version][0]) for group, version in _groups("memory", mount, own))
    return min([float(psutil.virtual_memory().total), *limits])


def available_memory_bytes(mount: Path = _MOUNT, own: Path = _OWN) -> float:
    """How much more memory this process can use: what the machine has free, within the limits of its container.

    A control group's limit leaves `limit - current`, and its file cache can be given back.
    """
    left = (_memory_left(group, version) for group, version in _groups("memory", mount, own))
    return max(0.0, min([float(psutil.virtual_memory().available), *left]))


def _groups(controller: str, mount: Path, own: Path) -> Iterator[tuple[Path, int]]:
    """The folder of this process's control group and of every group above, which limits it as well; the version."""
    try:
        lines = own.read_text(encoding="utf-8").splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        root, version = (mount / controller, 1) if controllers else (mount, 2)
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            yield folder, version
            if folder == root:
                break


def _cpu_share(group: Path, version: int) -> float:
    """In CPUs; infinite where the group has no limit, or is not visible from inside its container."""
    try:
        if version == 2:
            quota, period = (group / "cpu.max").read_text().split()
        else:
            quota, period = ((group / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
        return int(quota) / int(period) if int(quota) > 0 else math.inf
    except (OSError, ValueError):  # "max"
        return math.inf


def _memory_left(group: Path, version: int) -> float:
    limit, current, cache = _MEMORY_FILES[version]
    try:
        stat = dict(line.split(maxsplit=1) for line in (group / "memory.stat").read_text().splitlines())
        used = int((group / current).read_text()) - int(stat.get(cache, "0"))
    except (OSError, ValueError):
        return math.inf
    return _number(group / limit) - used


def _number(file: Path) -> float:
    """Infinite where there is none."""
    try:
        return float(int(file.read_text()))
    except (OSError, ValueError):
        return math.inf
