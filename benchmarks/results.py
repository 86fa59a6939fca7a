"""Where benchmarks leave their figures: `benchmarks/results/<name>.json`, with the machine they were taken on."""

from __future__ import annotations

import json
import os
import platform
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import Any

FOLDER = Path(__file__).parent / "results"


def write_result(name: str, figures: dict[str, Any]) -> Path:
    """Write `figures` as `results/<name>.json`; returns the path."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    path.write_text(json.dumps({"figures": figures, "machine": machine()}, indent=2) + "\n")
    return path


def machine() -> dict[str, Any]:
    """What the figures depend on besides the code."""
    return {
        "cpu": _cpu_model(),
        "avx512": "avx512f" in cpu_flags(),
        "cores": os.cpu_count(),
        "load_average": round(os.getloadavg()[0], 2),
        "python": platform.python_version(),
        "torch": version("torch"),
        "prefect": version("prefect"),
        "at": datetime.now(UTC).isoformat(timespec="seconds"),
    }


def cpu_flags() -> list[str]:
    """The instruction sets of the processor, as Linux names them; empty elsewhere."""
    return _cpu_info("flags").split()


def _cpu_model() -> str:
    return _cpu_info("model name") or platform.processor() or platform.machine()


def _cpu_info(name: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return ""
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith(name)), "")
