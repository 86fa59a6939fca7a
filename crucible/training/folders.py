"""Checkpoint folders on the local disk: written whole or not at all, and verified before they are trusted.

`step-00001200.partial/` is filled, every file fsynced, and renamed to `step-00001200/`. Inside:

    model.safetensors      the weights
    optimizer.safetensors  AdamW's two moments
    rng.json               the random number generators, per process
    state.json             step, config, digests, losses, scaler, environment: to be read with `cat`
    checksums.json         size and sha256 of each of them, written last

Nothing here knows torch, so the background writer starts in a tenth of a second.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from crucible.contract import PARTIAL_SUFFIX, STATE_FILE, file_sha256, finished_folders, step_name, step_of
from crucible.errors import CheckpointError

__all__ = [
    "CHECKSUMS",
    "MODEL",
    "OPTIMIZER",
    "RNG",
    "STATE",
    "FilePlan",
    "fault",
    "newest_sound",
    "prune",
    "safetensors_header",
    "sweep",
    "write_folder",
]

MODEL, OPTIMIZER, RNG, STATE = "model.safetensors", "optimizer.safetensors", "rng.json", STATE_FILE
CHECKSUMS = "checksums.json"

_CHUNK = 8 << 20


@dataclass(frozen=True)
class FilePlan:
    """A file to write: `head`, then each `body`. `finite`: the bodies are float32 and may hold no NaN or infinity."""

    name: str
    head: bytes
    bodies: tuple[memoryview, ...] = ()
    finite: bool = False


def write_folder(parent: Path, step: int, files: Sequence[FilePlan]) -> int:
    """Write `parent/step-…` durably; returns its bytes.

    Raises CheckpointError, and leaves nothing behind, if the disk refuses or a weight is not a finite number.
    """
    target = parent / step_name(step)
    partial = parent / f"{target.name}{PARTIAL_SUFFIX}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        sums = {plan.name: _write_file(partial / plan.name, plan) for plan in files}
        checksums = json.dumps({"schema_version": 1, "step": step, "files": sums}, indent=1) + "\n"
        _write_file(partial / CHECKSUMS, FilePlan(CHECKSUMS, checksums.encode()))
        _sync_folder(partial)
        # A folder of this step can be there already if a run was resumed from an older one: it gives way.
        shutil.rmtree(target, ignore_errors=True)
        partial.rename(target)
        _sync_folder(parent)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, CheckpointError):
            raise
        reason = error.strerror or str(error)
        raise CheckpointError(f"the checkpoint of step {step} cannot be written to {parent}: {reason}") from None
    return sum(int(entry["bytes"]) for entry in sums.values())


def fault(folder: Path) -> str | None:
    """What is wrong with a finished folder, or None if all its files are as they were written."""
    try:
        expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))["files"]
        missing = {MODEL, OPTIMIZER, RNG, STATE} - set(expected)
        if missing:
            return f"{CHECKSUMS} does not name {', '.join(sorted(missing))}"
        for name, entry in expected.items():
            size = (folder / name).stat().st_size
            if size != entry["bytes"]:
                return f"{name} has {size} bytes instead of {entry['bytes']}"
        for name, entry in expected.items():
            if file_sha256(folder / name) != entry["sha256"]:
                return f"{name} is not what was written (its sha256 differs)"
    except FileNotFoundError as error:
        return f"{Path(error.filename).name} is missing"
    except (OSError, ValueError, KeyError, TypeError) as error:
        return f"it cannot be read ({error})"
    return None


def newest_sound(parent: Path, log: Callable[[str], None]) -> Path | None:
    """The newest finished folder that verifies; damaged ones are reported and passed over."""
    for folder in reversed(finished_folders(parent)):
        problem = fault(folder)
        if problem is None:
            return folder
        log(f"checkpoint {folder} is damaged and not used: {problem}")
    return None


def prune(parent: Path, keep: int, best_step: int | None) -> None:
    """Remove all but the `keep` newest finished folders and the one of `best_step`."""
    for folder in finished_folders(parent)[:-keep]:
        if step_of(folder) != best_step:
            shutil.rmtree(folder, ignore_errors=True)


def sweep(parent: Path) -> list[str]:
    """Remove what interrupted saves left; returns the names. Only for who holds the folder's lock."""
    leftovers = sorted(parent.glob(f"step-*{PARTIAL_SUFFIX}"))
    for folder in leftovers:
        shutil.rmtree(folder, ignore_errors=True)
    return [folder.name for folder in leftovers]


def safetensors_header(shapes: Mapping[str, Sequence[int]]) -> bytes:
    """The head of a safetensors file of float32 tensors that follow each other in this order.

    Format: https://github.com/huggingface/safetensors#format. No metadata: equal weights give equal files.
    """
    entries: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        start, end = end, end + 4 * int(np.prod(shape, dtype=np.int64))
        entries[name] = {"dtype": "F32", "shape": list(shape), "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text


def _write_file(path: Path, plan: FilePlan) -> dict[str, Any]:
    digest = hashlib.sha256()
    size = 0
    with path.open("wb", buffering=0) as file:
        for chunk in _chunks(plan):
            digest.update(chunk)
            size += len(chunk)
            while chunk:  # a raw write may take less than it is given
                chunk = chunk[file.write(chunk) :]
        os.fsync(file.fileno())
    return {"bytes": size, "sha256": digest.hexdigest()}


def _chunks(plan: FilePlan) -> Iterator[memoryview]:
    yield memoryview(plan.head)
    for body in plan.bodies:
        body = body.cast("B")
        for start in range(0, len(body), _CHUNK):
            chunk = body[start : start + _CHUNK]
            # One NaN or infinity makes the sum one, and a sum takes a quarter of the time of looking at each.
            if plan.finite and not np.isfinite(np.add.reduce(np.frombuffer(chunk, "<f4"))):
                raise CheckpointError(f"{plan.name} holds NaN or infinity; it is not saved")
            yield chunk


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
