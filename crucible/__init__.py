"""Crucible: training runs that survive the cloud.

`crucible.submit`, `job`, `estimate` and `sweep` are documented in `docs/python-api.md`. They are loaded when they are
first used (`crucible/api.py`), so that `import crucible` costs nothing where a script only wants `crucible.workload`.
"""

from __future__ import annotations

import importlib
from typing import Any

__version__ = "0.1.0"

_PLACES = {
    **dict.fromkeys(("JobHandle", "Status"), "crucible.job_handle"),
    **dict.fromkeys(("job", "submit", "sweep"), "crucible.api"),
    "Limits": "crucible.jobs.records",
    "RunConfig": "crucible.run_config",
    "ScriptConfig": "crucible.script_config",
    "TrainConfig": "crucible.config",
}


def __getattr__(name: str) -> Any:
    if name in _PLACES:
        return getattr(importlib.import_module(_PLACES[name]), name)
    if name in ("estimate", "workload"):
        return importlib.import_module(f"crucible.{name}")
    raise AttributeError(f"module 'crucible' has no attribute {name!r}")
