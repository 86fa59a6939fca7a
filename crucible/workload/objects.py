"""The objects whose state a checkpoint holds: model, optimizer, scheduler, data loader and whatever else has a state.

In a checkpoint folder:

    NAME.safetensors  the tensors of the object of that name: model.safetensors, optimizer.safetensors, …
    objects.json      the rest of every object's state
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from crucible.errors import CheckpointError, ConfigError
from crucible.workload.folders import FilePlan
from crucible.workload.values import TensorReader, Tensors, decode, encode

__all__ = ["OBJECTS", "Objects"]

OBJECTS = "objects.json"
EXTRA = "extra"
SCHEMA_VERSION = 1

_NAMES = {
    "torch.nn.modules.module.Module": "model",
    "torch.optim.optimizer.Optimizer": "optimizer",
    "torch.optim.lr_scheduler.LRScheduler": "scheduler",
    "torch.amp.grad_scaler.GradScaler": "scaler",
    "torch.utils.data.dataloader.DataLoader": "loader",
    "torch._C.Generator": "generator",
    "numpy.random._generator.Generator": "generator",
    "random.Random": "generator",
}
"""What an object that is given without a name is called."""


class Objects:
    """What is saved and restored, by name. Raises ConfigError for an object that has no state to save."""

    def __init__(self, positional: Iterable[Any], named: Mapping[str, Any], extra: dict[str, Any] | None) -> None:
        self._extra = extra
        self._objects: dict[str, Any] = {}
        for value in positional:
            name = base = _name(value)
            count = 1
            while name in self._objects or name in named:
                count += 1
                name = f"{base}_{count}"
            self._objects[name] = value
        self._objects |= named
        for name, value in self._objects.items():
            _read_state_of(name, value, dry=True)

    def plans(self) -> list[FilePlan]:
        """The files with the state of this moment. Raises CheckpointError for what cannot be saved without a pickle."""
        plans, states = [], {}
        for name, value in self._everything():
            tensors = Tensors(name)
            states[name] = encode(_read_state_of(name, value), tensors, name)
            if tensors:
                plans.append(tensors.plan(f"{name}.safetensors"))
        content = json.dumps({"schema_version": SCHEMA_VERSION, "objects": states}) + "\n"
        return [*plans, FilePlan(OBJECTS, content.encode())]

    def restore(self, folder: Path) -> None:
        """Load every object's state. Raises CheckpointError if the folder holds other objects or they do not fit."""
        try:
            states = json.loads((folder / OBJECTS).read_text(encoding="utf-8"))["objects"]
        except FileNotFoundError:
            raise CheckpointError(
                f"{folder} has no {OBJECTS}: another program or another way of saving wrote it; start in another folder"
            ) from None
        values = dict(self._everything())
        if set(states) != set(values):
            raise CheckpointError(
                f"{folder} holds the states of {', '.join(sorted(states))}, and this script gives "
                f"{', '.join(sorted(values))}; give the same objects under the same names, or start in another folder"
            )
        for name, value in values.items():
            state = decode(states[name], TensorReader(folder / f"{name}.safetensors"))
            try:
                _load_state_into(value, state)
            except (RuntimeError, ValueError, KeyError, TypeError) as error:
                raise CheckpointError(f"the state of {name} in {folder} does not fit this script's: {error}") from error

    def _everything(self) -> list[tuple[str, Any]]:
        extra = [] if self._extra is None else [(EXTRA, self._extra)]
        return [*((name, _unwrapped(value)) for name, value in self._objects.items()), *extra]


def _unwrapped(value: Any) -> Any:
    """The module itself, so that a checkpoint fits with and without torch.compile and DistributedDataParallel."""
    value = getattr(value, "_orig_mod", value)
    return value.module if type(value).__name__ in ("DistributedDataParallel", "DataParallel") else value


def _name(value: Any) -> str:
    for kind in type(_unwrapped(value)).__mro__:
        name = _NAMES.get(f"{kind.__module__}.{kind.__qualname__}")
        if name:
            return name
    return type(value).__name__.lower()


def _read_state_of(name: str, value: Any, dry: bool = False) -> Any:
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, dict):
        return value
    for method in ("state_dict", "get_state"):
        if callable(getattr(value, method, None)):
            return None if dry else getattr(value, method)()
    if hasattr(value, "bit_generator"):
        return value.bit_generator.state
    raise ConfigError(
        f"{name} is a {type(value).__qualname__}, which has no state_dict: give objects with state_dict and "
        "load_state_dict, random generators, or dicts of plain values"
    )


def _load_state_into(value: Any, state: Any) -> None:
    if isinstance(value, random.Random):
        value.setstate(state)
    elif isinstance(value, dict):
        value.update(state)
    elif hasattr(value, "load_state_dict"):
        value.load_state_dict(state)
        loader = getattr(value, "base_dataloader", value)  # Accelerate wraps it
        if _name(loader) == "loader":
            # It makes its iterator now: the random draws of that must come before the generators are restored.
            loader.state_dict()
    elif hasattr(value, "set_state"):
        value.set_state(state)
    else:
        value.bit_generator.state = state
