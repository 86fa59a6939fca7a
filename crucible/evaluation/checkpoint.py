"""Load a checkpoint folder as a model, with the checkpoint's records."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from crucible.config import TrainConfig
from crucible.training.model import GPT, load_model
from crucible.workload.folders import CHECKSUMS, MODEL, OPTIMIZER, STATE


@dataclass(frozen=True)
class TrainedModel:
    """A model, at first on the CPU and in float32, and its checkpoint."""

    folder: Path
    model: GPT
    config: TrainConfig
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def full_val_loss(self) -> float | None:
        """The loss over the whole validation split, if the trainer has measured it for these weights."""
        loss = self.state.get("full_val_loss")
        return None if loss is None else float(loss)

    @property
    def weights_sha256(self) -> str:
        """The sha256 of the checkpoint's weights file."""
        return str(_read(self.folder / CHECKSUMS)["files"][MODEL]["sha256"])

    def moments(self) -> dict[str, Tensor]:
        """AdamW's state: `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`."""
        return load_file(self.folder / OPTIMIZER)


def load_trained(folder: Path) -> TrainedModel:
    """The model in a checkpoint folder of the trainer, every file verified.

    Raises `CheckpointError` when a file is missing or damaged or the weights do not fit the configuration.
    """
    model, config = load_model(folder)
    return TrainedModel(folder, model, config, _read(folder / STATE))


def _read(path: Path) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8")))
