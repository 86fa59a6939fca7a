"""What Prefect and its integrations do not do yet: one file for each upstream fault.

A file with a patch defines `PATCH`, or a tuple `PATCHES`, and is named in `MODULES`. The entry points of Crucible's
own processes apply what they need with `patches.apply_all`; nothing here takes effect on import. `private_hooks.py`
lists what is used without being replaced or promised.
"""

from __future__ import annotations

import importlib

from crucible.prefect_compat.patches import Patch, PatchStatus, check

MODULES: tuple[str, ...] = ("process_start",)
"""The files that hold patches. What is named here is shown by `crucible doctor` and checked by the tests."""


def all_patches() -> list[Patch]:
    """Every patch that Crucible has. Loads the libraries that the patches name at their top, so not for hot paths."""
    found: list[Patch] = []
    for name in MODULES:
        module = importlib.import_module(f"{__name__}.{name}")
        found += getattr(module, "PATCHES", None) or [module.PATCH]
    return found


def statuses() -> list[PatchStatus]:
    """Each patch, and whether it can be in force with the versions that are installed here."""
    return [check(patch) for patch in all_patches()]
