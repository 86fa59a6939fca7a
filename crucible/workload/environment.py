"""What may change the last bits of a result, as checkpoints record it."""

from __future__ import annotations

import platform
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["changes", "cpu_info", "cpu_model", "script_environment"]


def script_environment(processes: int) -> dict[str, Any]:
    """Of a script that runs now. Equal environments give equal bits, if the script itself is deterministic."""
    found: dict[str, Any] = {
        "hardware": cpu_model(),
        "platform": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "processes": processes,
    }
    if "torch" in sys.modules:
        import torch

        found |= {"torch": torch.__version__, "threads": torch.get_num_threads()}
        if torch.cuda.is_available():
            found["hardware"] = torch.cuda.get_device_name()
    if "numpy" in sys.modules:
        import numpy as np

        found["numpy"] = np.__version__
    return found


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


def changes(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """What differs between two environments, for the log."""
    before = {"replicas": before.get("threads_with_own_rows"), **before}  # its name before 0.2
    return [f"{name} {before.get(name)} -> {now.get(name)}" for name in now if before.get(name) != now.get(name)]
