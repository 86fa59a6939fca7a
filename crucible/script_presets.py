"""Settings for scripts of well-known kinds: `workload: nanogpt` in crucible.yaml instead of five lines.

A setting that is given beside the preset wins over it.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from typing import Any

from crucible.settings import invalid

__all__ = ["SCRIPT_PRESETS", "with_preset"]

SCRIPT_PRESETS: Mapping[str, Mapping[str, Any]] = {
    # nanoGPT's train.py and what was written after it: one file, overwritten in place; SIGTERM ends it without a save.
    "nanogpt": {
        "checkpoint": {"path": "out/ckpt.pt", "step_from": r"step (\d+): train loss"},
        "resume": ["--init_from=resume"],
        "sigterm": False,
        "metrics": {"format": "nanogpt"},
    },
    # Scripts around transformers.Trainer: one folder a checkpoint, with global_step in its trainer_state.json.
    "huggingface": {
        "checkpoint": {"path": "out/checkpoint-*"},
        "resume": ["--resume_from_checkpoint", "{checkpoint}"],
        "sigterm": False,
        "metrics": {"format": "huggingface"},
    },
    # Lightning's Trainer and its command line: ModelCheckpoint's files, with the step in their names.
    "lightning": {
        "checkpoint": {"path": "lightning_logs/version_*/checkpoints/*step=*.ckpt"},
        "resume": ["--ckpt_path", "{checkpoint}"],
        "sigterm": False,
        "metrics": {"format": "lightning"},
    },
}


def with_preset(name: str, given: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of a script: the preset's, those `given` over them, sections key by key.

    Raises a validation error for a name that is none.
    """
    if name not in SCRIPT_PRESETS:
        near = difflib.get_close_matches(name, SCRIPT_PRESETS, n=1)
        fix = f"did you mean {near[0]}?" if near else f"there are {', '.join(SCRIPT_PRESETS)}"
        raise invalid(f"workload = {name!r} is not a known kind of script; {fix}")
    return _merged(SCRIPT_PRESETS[name], given)


def _merged(below: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    if isinstance(above.get("checkpoint"), str):  # short for its path
        above = {**above, "checkpoint": {"path": above["checkpoint"]}}
    merged = {**below, **above}
    for key in below.keys() & above.keys():
        if isinstance(below[key], Mapping) and isinstance(above[key], Mapping):
            merged[key] = _merged(below[key], above[key])
    return merged
