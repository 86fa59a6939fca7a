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
import math
import os
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence, Set
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from crucible.contract import PARTIAL_SUFFIX, STATE_FILE, file_sha256, finished_folders, step_name, step_of
from crucible.errors import CheckpointError

__all__ = [
    "CHECKSUMS",
    "MODEL",
    "OPTIMIZER",
    "RNG",
    "STATE",
    "TRAINER_FILES",
    "TYPES",
    "FilePlan",
    "fault",
    "newest_sound",
    "prune",
    "publish_folder",
    "safetensors_header",
    "sweep",
    "write_folder",
]

MODEL, OPTIMIZER, RNG, STATE = "model.safetensors", "optimizer.safetensors", "rng.json", STATE_FILE
CHECKSUMS = "checksums.json"
TRAINER_FILES = frozenset({MODEL, OPTIMIZER, RNG, STATE})
"""What a checkpoint of Crucible's own trainer holds besides."""
TYPES = {
    "float64": ("F64", 8),
    "float32": ("F32", 4),
    "float16": ("F16", 2),
    "bfloat16": ("BF16", 2),
    "float8_e4m3fn": ("F8_E4M3", 1),
    "float8_e5m2": ("F8_E5M2", 1),
    "int64": ("I64", 8),
    "int32": ("I32", 4),
    "int16": ("I16", 2),
    "int8": ("I8", 1),
    "uint64": ("U64", 8),
    "uint32": ("U32", 4),
    "uint16": ("U16", 2),
    "uint8": ("U8", 1),
    "bool": ("BOOL", 1),
}
"""What torch and numpy call a type: its name in safetensors files, and its bytes."""

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

    def fill(partial: Path) -> dict[str, dict[str, Any]]:
        return {plan.name: _write_file(partial / plan.name, plan) for plan in files}

    return _publish(parent, step, fill)


def publish_folder(parent: Path, step: int, fill: Callable[[Path], None]) -> int:
    """As `write_folder`, with the files that `fill` writes into the folder that it is given, subfolders included."""

    def fill_and_read(partial: Path) -> dict[str, dict[str, Any]]:
        fill(partial)
        return {
            str(path.relative_to(partial)): _sync_file(path) for path in sorted(partial.rglob("*")) if path.is_file()
        }

    return _publish(parent, step, fill_and_read)


def _publish(parent: Path, step: int, fill: Callable[[Path], dict[str, dict[str, Any]]]) -> int:
    target = parent / step_name(step)
    partial = parent / f"{target.name}{PARTIAL_SUFFIX}"
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        sums = fill(partial)
        checksums = json.dumps({"schema_version": 1, "step": step, "files": sums}, indent=1) + "\n"
        _write_file(partial / CHECKSUMS, FilePlan(CHECKSUMS, checksums.encode()))
        _sync_folder(partial)
        # A folder of this step can be there already if a run was resumed from an older one: it gives way.
        _remove(target)
        partial.rename(target)
        _sync_folder(parent)
    except (OSError, CheckpointError) as error:
        shutil.rmtree(partial, ignore_errors=True)
        if isinstance(error, CheckpointError):
            raise
        reason = error.strerror or str(error)
        raise CheckpointError(f"the checkpoint of step {step} cannot be written to {parent}: {reason}") from None
    return sum(int(entry["bytes"]) for entry in sums.values())


def fault(folder: Path, required: Set[str] = frozenset({STATE})) -> str | None:
    """What is wrong with a finished folder, or None if it has the `required` files and all are as they were written."""
    try:
        expected = json.loads((folder / CHECKSUMS).read_text(encoding="utf-8"))["files"]
        missing = required - set(expected)
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


def newest_sound(parent: Path, log: Callable[[str], None], required: Set[str] = frozenset({STATE})) -> Path | None:
    """The newest finished folder that verifies; damaged ones are reported and passed over."""
    for folder in reversed(finished_folders(parent)):
        problem = fault(folder, required)
        if problem is None:
            return folder
        log(f"checkpoint {folder} is damaged and not used: {problem}")
    return None


def prune(parent: Path, keep: int, best_step: int | None, saved_step: int) -> None:
    """Remove all but the `keep` newest finished folders and the one of `best_step`, once `saved_step` is saved.

    Folders of later steps are damaged: this run was resumed from an older one. They do not count.
    """
    steps = [(step, folder) for folder in finished_folders(parent) if (step := step_of(folder) or 0) <= saved_step]
    for step, folder in steps[:-keep]:
        if step != best_step:
            _remove(folder)


def _remove(folder: Path) -> None:
    """Remove it so that a process that is killed meanwhile leaves no half of it under its final name."""
    going = folder.with_name(f"{folder.name}.old{PARTIAL_SUFFIX}")
    shutil.rmtree(going, ignore_errors=True)
    with suppress(FileNotFoundError):
        folder.rename(going)
    shutil.rmtree(going, ignore_errors=True)


def sweep(parent: Path) -> list[str]:
    """Remove what interrupted saves left; returns the names. Only for who holds the folder's lock."""
    leftovers = sorted(parent.glob(f"step-*{PARTIAL_SUFFIX}"))
    for folder in leftovers:
        shutil.rmtree(folder, ignore_errors=True)
    return [folder.name for folder in leftovers]


def safetensors_header(shapes: Mapping[str, Sequence[int]], types: Mapping[str, str] | None = None) -> bytes:
    """The head of a safetensors file of tensors that follow each other in this order.

    `types`: by name, a key of `TYPES`; None: all are float32. Format:
    https://github.com/huggingface/safetensors#format. No metadata: equal weights give equal files.
    """
    entries: dict[str, object] = {}
    end = 0
    for name, shape in shapes.items():
        code, size = TYPES[types[name] if types else "float32"]
        start, end = end, end + size * math.prod(shape)
        entries[name] = {"dtype": code, "shape": list(shape), "data_offsets": [start, end]}
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
        if not body.nbytes:
            continue  # a shape with a zero in it cannot be cast
        body = body.cast("B")
        for start in range(0, len(body), _CHUNK):
            chunk = body[start : start + _CHUNK]
            # One NaN or infinity makes the sum one, and a sum takes a quarter of the time of looking at each.
            if plan.finite and not _is_finite(chunk):
                raise CheckpointError(f"{plan.name} holds NaN or infinity; it is not saved")
            yield chunk


def _is_finite(chunk: memoryview) -> bool:
    import numpy as np  # not every script has numbers to look at

    return bool(np.isfinite(np.add.reduce(np.frombuffer(chunk, "<f4"))))


def _sync_file(path: Path) -> dict[str, Any]:
    """Make durable what another has written."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    return {"bytes": path.stat().st_size, "sha256": file_sha256(path)}


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
