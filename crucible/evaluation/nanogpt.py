"""Export a model for nanoGPT's own scripts: `ckpt.pt`, for `sample.py` and for `train.py --init_from=resume`.

The file loads with `torch.load(..., weights_only=True)`: nothing in it can run code.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from crucible.evaluation.card import NANOGPT_DATASET
from crucible.evaluation.checkpoint import TrainedModel
from crucible.training.optimizer import learning_rate

MODEL_ARGUMENTS = ("n_layer", "n_head", "n_embd", "block_size", "bias", "dropout")


def export_nanogpt(trained: TrainedModel, folder: Path, best_val_loss: float) -> None:
    """Write `folder/ckpt.pt` with the weights, AdamW's state, the step and the settings, under nanoGPT's names."""
    config, model = trained.config, trained.model
    arguments = {name: getattr(config, name) for name in MODEL_ARGUMENTS}
    settings = {name: value for name, value in config.model_dump().items() if value is not None}
    content = {
        "model": model.state_dict(),
        "optimizer": _optimizer(trained),
        "model_args": {**arguments, "vocab_size": model.transformer.wte.num_embeddings},
        "iter_num": trained.step,
        "best_val_loss": best_val_loss,
        "config": {**settings, "lr_decay_iters": config.decay_end, "dataset": NANOGPT_DATASET},
    }
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(content, folder / "ckpt.pt")


def _optimizer(trained: TrainedModel) -> dict[str, Any]:
    """The state of the optimizer that nanoGPT would have made: matrices in the first group, vectors in the second."""
    config, parameters = trained.config, dict(trained.model.named_parameters())
    names = sorted(parameters, key=lambda name: parameters[name].dim() < 2)  # stable: the model's order otherwise
    matrices = [parameters[name] for name in names if parameters[name].dim() >= 2]
    vectors = [parameters[name] for name in names if parameters[name].dim() < 2]
    optimizer = torch.optim.AdamW(
        [{"params": matrices, "weight_decay": config.weight_decay}, {"params": vectors, "weight_decay": 0.0}],
        lr=learning_rate(config, trained.step),
        betas=(config.beta1, config.beta2),
    )
    state = optimizer.state_dict()
    moments = trained.moments()
    state["state"] = {
        number: {
            "step": torch.tensor(float(trained.state["updates"])),
            "exp_avg": moments[f"exp_avg.{name}"],
            "exp_avg_sq": moments[f"exp_avg_sq.{name}"],
        }
        for number, name in enumerate(names)
    }
    return state
