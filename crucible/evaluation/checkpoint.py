"""A checkpoint folder as a model."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from crucible.config import TrainConfig
from crucible.errors import CheckpointError
from crucible.training.folders import CHECKSUMS, MODEL, OPTIMIZER
from crucible.training.model import GPT
from crucible.training.state import read_state


@dataclass(frozen=True)
class TrainedModel:
    """A model with what its checkpoint says about it. The model is on the CPU, in float32."""

    folder: Path
    model: GPT
    config: TrainConfig
    state: dict[str, Any]

    @property
    def step(self) -> int:
        return int(self.state["step"])

    @property
    def weights_sha256(self) -> str:
        """The sha256 of the checkpoint's weights file."""
        checksums = json.loads((self.folder / CHECKSUMS).read_text(encoding="utf-8"))
        return str(checksums["files"][MODEL]["sha256"])

    def moments(self) -> dict[str, Tensor]:
        """AdamW's state: `exp_avg.<parameter>` and `exp_avg_sq.<parameter>`."""
        return load_file(self.folder / OPTIMIZER)


def load_trained(folder: Path) -> TrainedModel:
    """The model in a checkpoint folder of our own trainer, every file verified.

    Raises `CheckpointError` when a file is missing or damaged or the weights do not fit the configuration.
    """
    state = read_state(folder)
    config = TrainConfig.parse(state["config"], source=str(folder))
    model = GPT(config, int(state["vocab_size"]))
    try:
        # The output layer is the embedding: it is in the file once, and strict loading would miss it.
        missing, unexpected = model.load_state_dict(load_file(folder / MODEL), strict=False)
    except (OSError, SafetensorError, RuntimeError) as error:
        raise CheckpointError(f"checkpoint {folder} does not fit its own configuration: {error}") from error
    if unexpected or set(missing) - {"lm_head.weight"}:
        raise CheckpointError(f"checkpoint {folder} does not fit its own configuration: {[*missing, *unexpected]}")
    model.eval()
    return TrainedModel(folder, model, config, state)
