"""AdamW over flat buffers: all weights in one tensor, all gradients in another.

The model's parameters become views of the weights. One buffer makes clipping one norm, averaging over GPUs one
all-reduce (in an order that does not depend on how often a run was resumed), and a checkpoint's snapshot three copies.
What touches every weight is shared among the threads of a team, a piece of the buffers each.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from crucible.config import TrainConfig
from crucible.training.cpu.team import Team

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


@dataclass(frozen=True)
class _Piece:
    """What one thread updates of one group of weights, and how often it has."""

    where: slice
    weight_decay: float
    updates: Tensor


def _cut(first: int, last: int, number: int, count: int) -> slice:
    """The `number`th of `count` equal pieces."""
    return slice(first + (last - first) * number // count, first + (last - first) * (number + 1) // count)


class FlatAdamW:
    """nanoGPT's AdamW: weight decay on matrices and embeddings, none on biases and normalisation.

    Takes over the model's parameters: afterwards they are views of `weights`, and their gradients of `gradients`. The
    update is torch's function, not its `Optimizer`, which loads the compiler with the first step: a second at the
    start of every attempt. For `torch.amp.GradScaler` it is an optimizer that skips a step by itself.
    """

    _step_supports_amp_scaling = True
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(self, model: nn.Module, config: TrainConfig, team: Team | None = None) -> None:
        # Matrices first, so that each of the two groups is one piece.
        self.parameters = dict(sorted(model.named_parameters(), key=lambda item: item[1].dim() < 2))
        self.sizes = {name: parameter.numel() for name, parameter in self.parameters.items()}
        decayed = sum(parameter.numel() for parameter in self.parameters.values() if parameter.dim() >= 2)
        device = next(iter(self.parameters.values())).device
        self.weights = torch.cat([parameter.detach().flatten() for parameter in self.parameters.values()])
        self.gradients = torch.zeros_like(self.weights)
        self.share(model, self.gradients)

        # The moments, flat like the weights, exist from the start, so that a checkpoint has one shape at every step.
        self.first_moment = torch.zeros_like(self.weights)
        self.second_moment = torch.zeros_like(self.weights)
        self.rate, self.betas = config.learning_rate, (config.beta1, config.beta2)
        self.team = team or Team(1)
        counter = torch.zeros((), dtype=torch.float32, device=device if device.type == "cuda" else "cpu")
        groups = [(0, decayed, config.weight_decay), (decayed, self.weights.numel(), 0.0)]
        # Each thread counts for itself: torch's function adds to the count that it is given.
        self._pieces = [
            [_Piece(_cut(first, last, n, self.team.count), decay, counter.clone()) for first, last, decay in groups]
            for n in range(self.team.count)
        ]

    def share(self, model: nn.Module, gradients: Tensor) -> None:
        """Let a model of the same shape compute with these weights and leave its gradients in `gradients`, flat."""
        parameters = dict(model.named_parameters())
        offset = 0
        for name, size in self.sizes.items():
            parameter, piece = parameters[name], slice(offset, offset + size)
            parameter.data = self.weights[piece].view(parameter.shape)
            parameter.grad = gradients[piece].view(parameter.shape)
            offset = piece.stop

    def add(self, others: Sequence[Tensor]) -> None:
        """Add further flat gradients to `gradients`."""

        def add_pieces(number: int) -> None:
            for piece in self._pieces[number]:
                for other in others:
                    self.gradients[piece.where] += other[piece.where]

        if others:
            self.team.each(add_pieces)

    def step(self) -> None:
        """One update of the weights from the gradients, unless a gradient scaler found them infinite."""
        self.team.each(self._update_pieces)

    def _update_pieces(self, number: int) -> None:
        with torch.no_grad():
            for piece in self._pieces[number]:
                adamw(
                    [self.weights[piece.where]],
                    [self.gradients[piece.where]],
                    [self.first_moment[piece.where]],
                    [self.second_moment[piece.where]],
                    [],
                    [piece.updates],
                    fused=self.weights.device.type in ("cpu", "cuda"),
                    grad_scale=self.grad_scale,
                    found_inf=self.found_inf,
                    amsgrad=False,
                    beta1=self.betas[0],
                    beta2=self.betas[1],
                    lr=self.rate,
                    weight_decay=piece.weight_decay,
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
        return int(self._pieces[0][0].updates.item())

    @updates.setter
    def updates(self, count: int) -> None:
        for piece in itertools.chain.from_iterable(self._pieces):
            piece.updates.fill_(count)

    def clip(self, largest_norm: float) -> Tensor:
        """Scale the gradients down to `largest_norm` (0: leave them); returns the norm they had, on their device."""

        def norms(number: int) -> Tensor:
            return torch.stack(
                [torch.linalg.vector_norm(self.gradients[piece.where]) for piece in self._pieces[number]]
            )

        def scale_down(number: int) -> None:
            for piece in self._pieces[number]:
                self.gradients[piece.where] *= scale

        norm: Tensor = torch.linalg.vector_norm(torch.cat(self.team.each(norms)))
        if largest_norm > 0:
            scale = torch.clamp(largest_norm / (norm + 1e-6), max=1.0)
            self.team.each(scale_down)
        return norm

    def named(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The pieces of a tensor laid out like the weights, by parameter name and in its shape."""
        pieces = torch.split(flat, list(self.sizes.values()))
        for (name, parameter), piece in zip(self.parameters.items(), pieces, strict=True):
            yield name, piece.view(parameter.shape)
