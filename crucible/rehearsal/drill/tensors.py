"""Are two checkpoints of a script equal, tensor by tensor? Files are read without executing anything in them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crucible.contract import file_sha256

if TYPE_CHECKING:
    import torch

_NUMPY = (".npz", ".npy")


def difference(one: Path, other: Path) -> str:
    """How the files below two folders differ, as a message; empty where their tensors are equal bit by bit.

    A file that holds no readable tensors counts only if no file of the folders does: logs and reports contain times.
    """
    names = sorted({name for folder in (one, other) for name in _files(folder)})
    unequal, compared, unread = [], False, []
    for name in names:
        paths = (one / name, other / name)
        if not all(path.is_file() for path in paths):
            unequal.append(f"{name} exists in one of them only")
            continue
        found = [read_tensors(path) for path in paths]
        compared = compared or all(tensors is not None for tensors in found)
        if file_sha256(paths[0]) == file_sha256(paths[1]):
            continue
        if found[0] is None or found[1] is None:
            unread.append(f"{name} differs")
        elif said := _compare(found[0], found[1]):
            unequal.append(f"{name}: {said}")
    return "; ".join(unequal if compared else [*unequal, *unread])


def read_tensors(path: Path) -> dict[str, torch.Tensor] | None:
    """Every tensor and array in a file by its place in it; None where the file holds none that can be read safely."""
    try:
        tensors = dict(_tensors(_load(path)))
    except Exception:  # noqa: BLE001 - whatever the file is, it is a stranger's
        return None
    return tensors or None


def _load(path: Path) -> Any:
    if path.suffix == ".safetensors":
        from safetensors.torch import load_file

        return load_file(path)
    if path.suffix in _NUMPY:
        import numpy as np

        content = np.load(path, allow_pickle=False)
        return {"": content} if path.suffix == ".npy" else {name: content[name] for name in content.files}
    import torch

    return torch.load(path, map_location="cpu", weights_only=True)


def _tensors(value: Any, place: str = "") -> Iterator[tuple[str, torch.Tensor]]:
    import numpy as np
    import torch

    if isinstance(value, torch.Tensor):
        yield place, value
    elif isinstance(value, np.ndarray):
        yield place, torch.from_numpy(value)
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from _tensors(entry, f"{place}.{key}".lstrip("."))
    elif isinstance(value, list | tuple):
        for number, entry in enumerate(value):
            yield from _tensors(entry, f"{place}.{number}".lstrip("."))


def _compare(one: Mapping[str, torch.Tensor], other: Mapping[str, torch.Tensor]) -> str:
    import torch

    if one.keys() != other.keys():
        return f"they hold other tensors: {', '.join(sorted(one.keys() ^ other.keys())[:3])}"
    differing, largest = 0, 0.0
    for name, tensor in one.items():
        with_it = other[name]
        if tensor.shape != with_it.shape or tensor.dtype != with_it.dtype:
            return f"{name} has another shape or type"
        if torch.equal(*(part.contiguous().reshape(-1).view(torch.uint8) for part in (tensor, with_it))):
            continue
        differing += 1
        if not tensor.is_complex():
            largest = max(largest, float((tensor.double() - with_it.double()).abs().max()))
    return f"{differing} of {len(one)} tensors differ, by {largest:.2g} at most" if differing else ""


def _files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
