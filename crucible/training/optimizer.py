"""AdamW over flat buffers: all weights in one tensor, all gradients in another.

The model's parameters become views of the weights. One buffer makes clipping one norm, averaging over GPUs one
all-reduce (in an order that does not depend on how often a run was resumed), and a checkpoint's snapshot three copies.
"""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from crucible.config import TrainConfig

__all__ = ["FlatAdamW", "learning_rate"]


def learning_rate(config: TrainConfig, step: int) -> float:
    """nanoGPT's schedule for the step that follows `step` finished ones: linear warm-up, then cosine to min_lr."""
    if not config.decay_lr:
        return config.learning_rate
    if step < config.warmup_iters:
        return config.learning_rate * (step + 1) / (config.warmup_iters + 1)
    if step > config.decay_end:
        return config.min_lr
    done = (step - config.warmup_iters) / max(config.decay_end - config.warmup_iters, 1)
    return config.min_lr + 0.5 * (1.0 + math.cos(math.pi * done)) * (config.learning_rate - config.min_lr)


class FlatAdamW:
    """nanoGPT's AdamW: weight decay on matrices and embeddings, none on biases and normalisation.

    Takes over the model's parameters: afterwards they are views of `weights`, and their gradients of `gradients`. The
    update is torch's function, not its `Optimizer`, which loads the compiler with the first step: a second at the
    start of every attempt. For `torch.amp.GradScaler` it is an optimizer that skips a step by itself.
    """

    _step_supports_amp_scaling = True
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        # Matrices first, so that each of the two groups is one piece.
        self.parameters = dict(sorted(model.named_parameters(), key=lambda item: item[1].dim() < 2))
        self.sizes = {name: parameter.numel() for name, parameter in self.parameters.items()}
        decayed = sum(parameter.numel() for parameter in self.parameters.values() if parameter.dim() >= 2)
        device = next(iter(self.parameters.values())).device
        self.weights = torch.empty(sum(self.sizes.values()), dtype=torch.float32, device=device)
        self.gradients = torch.zeros_like(self.weights)
        offset = 0
        for name, parameter in self.parameters.items():
            piece = slice(offset, offset + self.sizes[name])
            self.weights[piece] = parameter.detach().flatten()
            parameter.data = self.weights[piece].view(parameter.shape)
            parameter.grad = self.gradients[piece].view(parameter.shape)
            offset = piece.stop

        # The moments, flat like the weights, exist from the start, so that a checkpoint has one shape at every step.
        self.first_moment = torch.zeros_like(self.weights)
        self.second_moment = torch.zeros_like(self.weights)
        self.rate, self.betas = config.learning_rate, (config.beta1, config.beta2)
        self.groups = [(slice(0, decayed), config.weight_decay), (slice(decayed, None), 0.0)]
        self._counts = [
            torch.zeros((), dtype=torch.float32, device=device if device.type == "cuda" else "cpu") for _ in self.groups
        ]

    def step(self) -> None:
        """One update of the weights from the gradients, unless a gradient scaler found them infinite."""
        with torch.no_grad():
            for (piece, decay), count in zip(self.groups, self._counts, strict=True):
                adamw(
                    [self.weights[piece]],
                    [self.gradients[piece]],
                    [self.first_moment[piece]],
                    [self.second_moment[piece]],
                    [],
                    [count],
                    fused=self.weights.device.type in ("cpu", "cuda"),
                    grad_scale=self.grad_scale,
                    found_inf=self.found_inf,
                    amsgrad=False,
                    beta1=self.betas[0],
                    beta2=self.betas[1],
                    lr=self.rate,
                    weight_decay=decay,
                    eps=1e-8,
                    maximize=False,
                )

    @property
    def param_groups(self) -> list[dict[str, list[nn.Parameter]]]:
        """What a gradient scaler unscales."""
        flat = nn.Parameter(self.weights)
        flat.grad = self.gradients
        return [{"params": [flat]}]

    @property
    def updates(self) -> int:
        """How many updates AdamW has made: fewer than steps if a gradient scaler skipped some."""
        return int(self._counts[0].item())

    @updates.setter
    def updates(self, count: int) -> None:
        for counted in self._counts:
            counted.fill_(count)

    def clip(self, largest_norm: float) -> Tensor:
        """Scale the gradients down to `largest_norm` (0: leave them); returns the norm they had, on their device."""
        norm: Tensor = torch.linalg.vector_norm(self.gradients)
        if largest_norm > 0:
            self.gradients.mul_(torch.clamp(largest_norm / (norm + 1e-6), max=1.0))
        return norm

    def named(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The pieces of a tensor laid out like the weights, by parameter name and in its shape."""
        pieces = torch.split(flat, list(self.sizes.values()))
        for (name, parameter), piece in zip(self.parameters.items(), pieces, strict=True):
            yield name, piece.view(parameter.shape)
