"""The random number generators of a process as JSON: Python's, numpy's, torch's and the device's.

A library that was never imported has drawn nothing: it is left out, and not imported for this.
"""

from __future__ import annotations

import base64
import random
import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch

__all__ = ["capture_rng", "restore_rng"]


def capture_rng(device: torch.device | None = None) -> dict[str, Any]:
    """The state of every generator; of the accelerators' that of `device`, or all that are in use if it is None."""
    captured: dict[str, Any] = {}
    if "torch" in sys.modules:
        import torch

        captured["torch"] = _encode(torch.get_rng_state())
        if device is None and torch.cuda.is_available() and torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            captured["cuda"] = [_encode(state) for state in torch.cuda.get_rng_state_all()]
        elif device is not None and device.type == "cuda":
            captured["cuda"] = _encode(torch.cuda.get_rng_state(device))
        elif (device is None and torch.backends.mps.is_available()) or (device is not None and device.type == "mps"):
            captured["mps"] = _encode(torch.mps.get_rng_state())
    if "numpy" in sys.modules:
        import numpy as np

        state = np.random.get_state(legacy=False)
        assert isinstance(state, dict)
        captured["numpy"] = {**state, "state": {k: np.asarray(v).tolist() for k, v in state["state"].items()}}
    captured["python"] = random.getstate()
    return captured


def restore_rng(captured: Mapping[str, Any], device: torch.device | None = None) -> None:
    """Undo every draw since `capture_rng`. The generator of another kind of device cannot be restored and stays."""
    if "torch" in captured:
        import torch

        torch.set_rng_state(_decode(captured["torch"]))
        kind = device.type if device is not None else "cuda" if torch.cuda.is_available() else "mps"
        if kind == "cuda" and "cuda" in captured:
            if device is not None:
                torch.cuda.set_rng_state(_decode(captured["cuda"]), device)
            else:
                for number, state in enumerate(captured["cuda"][: torch.cuda.device_count()]):
                    torch.cuda.set_rng_state(_decode(state), number)
        elif kind == "mps" and "mps" in captured and torch.backends.mps.is_available():
            torch.mps.set_rng_state(_decode(captured["mps"]))
    if "numpy" in captured:
        import numpy as np

        state = captured["numpy"]
        keys = {
            name: np.array(value, dtype=np.uint32) if name == "key" else value for name, value in state["state"].items()
        }
        np.random.set_state({**state, "state": keys})
    version, internal, gauss = captured["python"]
    random.setstate((version, tuple(internal), gauss))


def _encode(tensor: torch.Tensor) -> str:
    return base64.b64encode(tensor.numpy().tobytes()).decode()


def _decode(text: str) -> torch.Tensor:
    import torch

    return torch.frombuffer(bytearray(base64.b64decode(text)), dtype=torch.uint8)
