"""State dicts as JSON and safetensors: nested plain values, with the tensors and arrays taken out of them.

A tensor stands in the JSON as the name it has in the safetensors file, which is its path in the state dict
(`state.0.exp_avg`). A module's state dict is flat, so its file has the parameters' own names and other programs read it
as they read any weights. Nothing is pickled: what is not a plain value, a tensor or an array is refused by its path.
"""

from __future__ import annotations

import base64
import math
import sys
from collections import Counter
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from crucible.errors import CheckpointError
from crucible.workload.folders import TYPES, FilePlan, safetensors_header

__all__ = ["TensorReader", "Tensors", "decode", "encode"]

_MARK = "$"


class Tensors:
    """The tensors and arrays of one object, by name. A tensor that stands in two places (tied weights) is kept once."""

    def __init__(self, owner: str) -> None:
        self._owner = owner
        self._found: dict[str, Any] = {}
        self._known: dict[Any, str] = {}

    def __bool__(self) -> bool:
        return bool(self._found)

    def add(self, value: Any, path: str) -> str:
        """Take a tensor or array; returns its name. Raises CheckpointError if its type cannot be saved."""
        if _type_name(value) not in TYPES:
            raise CheckpointError(f"{self._owner}.{path} is of type {value.dtype}, which safetensors files cannot hold")
        identity = _identity(value)
        if identity in self._known:
            return self._known[identity]
        name = path or "value"
        while name in self._found:
            name += "'"
        self._found[name] = value
        if identity is not None:
            self._known[identity] = name
        return name

    def plan(self, file: str) -> FilePlan:
        """The safetensors file. Larger types come first, as the format wants it for alignment."""
        names = sorted(self._found, key=lambda name: (-TYPES[_type_name(self._found[name])][1], name))
        shapes = {name: tuple(self._found[name].shape) for name in names}
        types = {name: _type_name(self._found[name]) for name in names}
        bodies = tuple(_memory(self._found[name]) for name in names)
        return FilePlan(file, safetensors_header(shapes, types), bodies)


def encode(value: Any, tensors: Tensors, owner: str, path: str = "") -> Any:
    """`value` as JSON, its tensors added to `tensors`. Raises CheckpointError for what is no plain value."""
    if value is None or isinstance(value, bool | str):
        return value
    if _is_tensor(value):
        return {"$tensor": tensors.add(value, path)}
    if _is_array(value):
        # A number of numpy's computes in its own precision, so it is no plain float after a resume either.
        return {"$array" if isinstance(value, sys.modules["numpy"].ndarray) else "$scalar": tensors.add(value, path)}
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return float(value) if math.isfinite(value) else {"$float": str(float(value))}
    if isinstance(value, bytes):
        return {"$bytes": base64.b64encode(value).decode()}

    def inner(key: object, item: Any) -> Any:
        return encode(item, tensors, owner, f"{path}.{key}" if path else str(key))

    if isinstance(value, Mapping):
        if type(value) is not Counter and all(isinstance(key, str) and not key.startswith(_MARK) for key in value):
            return {key: inner(key, item) for key, item in value.items()}
        pairs = [[encode(key, tensors, owner, path), inner(key, item)] for key, item in value.items()]
        return {"$counter" if type(value) is Counter else "$dict": pairs}
    if isinstance(value, list | tuple | set | frozenset):
        items = [inner(number, item) for number, item in enumerate(value)]
        return items if isinstance(value, list) else {"$tuple" if isinstance(value, tuple) else "$set": items}
    raise CheckpointError(
        f"{owner}.{path} is a {type(value).__qualname__}: only numbers, text, tensors, arrays and containers of them "
        "are saved, never a pickle; give it a state_dict that consists of these"
    )


def decode(value: Any, read: TensorReader) -> Any:
    """The value that `encode` was given."""
    if isinstance(value, list):
        return [decode(item, read) for item in value]
    if not isinstance(value, dict):
        return value
    if len(value) != 1 or not (mark := next(iter(value))).startswith(_MARK):
        return {key: decode(item, read) for key, item in value.items()}
    content = value[mark]
    if mark == "$tensor":
        return read.tensor(content)
    if mark == "$array":
        return read.array(content)
    if mark == "$scalar":
        return read.array(content)[()]
    if mark == "$float":
        return float(content)
    if mark == "$bytes":
        return base64.b64decode(content)
    items = decode(content, read)
    return _MAKERS[mark](items)


class TensorReader:
    """Reads tensors of one safetensors file into memory of their own."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def tensor(self, name: str) -> Any:
        """A torch tensor on the CPU. Raises CheckpointError."""
        return self._read(name, "pt").clone()

    def array(self, name: str) -> Any:
        """A numpy array. Raises CheckpointError."""
        return self._read(name, "np").copy()

    def _read(self, name: str, framework: str) -> Any:
        from safetensors import SafetensorError, safe_open

        try:
            with safe_open(self._path, framework=framework) as file:
                return file.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{self._path} cannot be read: {error}") from None


_MAKERS: dict[str, Callable[[Any], Any]] = {
    "$tuple": tuple,
    "$set": set,
    "$dict": dict,
    "$counter": lambda pairs: Counter(dict(pairs)),
}


def _is_tensor(value: Any) -> bool:
    return "torch" in sys.modules and isinstance(value, sys.modules["torch"].Tensor)


def _is_array(value: Any) -> bool:
    numpy = sys.modules.get("numpy")
    return numpy is not None and isinstance(value, numpy.ndarray | numpy.generic)


def _type_name(value: Any) -> str:
    return str(value.dtype).removeprefix("torch.")


def _identity(value: Any) -> Any:
    """Equal for two tensors that are the same memory seen in the same way; None if there is nothing to compare."""
    if _is_tensor(value) and value.numel():
        return value.device, value.data_ptr(), value.dtype, tuple(value.shape), tuple(value.stride())
    return None


def _memory(value: Any) -> memoryview:
    if _is_tensor(value):
        import torch

        value = value.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy()
    else:
        import numpy as np

        value = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
    return memoryview(value.data)
