"""AdamW over flat buffers: all weights in one tensor, all gradients in another.

The model's parameters become views of the weights. One buffer makes clipping one norm, averaging over GPUs one
all-reduce (in an order that does not depend on how often a run was resumed), and a checkpoint's snapshot three copies.
"""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.optim.adamw import adamw

from crucible.config import TrainConfig

__all__ = ["ADAMW_IS_AS_KNOWN", "FlatAdamW", "Piece", "learning_rate"]

T = TypeVar("T")


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
class Piece:
    """A part of the flat buffers that is updated at once. `updates` counts how often, on the device torch wants it."""

    where: slice
    weight_decay: float
    updates: Tensor

    def cut(self, number: int, count: int) -> Piece:
        """The `number`th of `count` equal parts, with a counter of its own."""
        first, size = self.where.start, self.where.stop - self.where.start
        where = slice(first + size * number // count, first + size * (number + 1) // count)
        return Piece(where, self.weight_decay, self.updates.clone())


class FlatAdamW:
    """nanoGPT's AdamW: weight decay on matrices and embeddings, none on biases and normalisation.

    Takes over the model's parameters: afterwards they are views of `weights`, and their gradients of `gradients`. A
    gradient scaler takes it for an optimizer: it has `param_groups` and `step`.
    """

    def __init__(self, model: nn.Module, config: TrainConfig) -> None:
        # Matrices first, so that each of the two groups is one piece.
        self.parameters = dict(sorted(model.named_parameters(), key=lambda item: item[1].dim() < 2))
        self.sizes = {name: parameter.numel() for name, parameter in self.parameters.items()}
        self.weights = torch.cat([parameter.detach().flatten() for parameter in self.parameters.values()])
        self.gradients = torch.zeros_like(self.weights)
        self.attach(model, self.gradients)

        # The moments, flat like the weights, exist from the start, so that a checkpoint has one shape at every step.
        self.first_moment = torch.zeros_like(self.weights)
        self.second_moment = torch.zeros_like(self.weights)
        self.rate, self.betas = config.learning_rate, (config.beta1, config.beta2)
        decayed = sum(parameter.numel() for parameter in self.parameters.values() if parameter.dim() >= 2)
        counter = torch.zeros((), device=self.weights.device if self.weights.is_cuda else "cpu")
        self.pieces = [
            Piece(slice(0, decayed), config.weight_decay, counter.clone()),
            Piece(slice(decayed, self.weights.numel()), 0.0, counter.clone()),
        ]

    def attach(self, model: nn.Module, gradients: Tensor) -> None:
        """Let a model of the same shape compute with these weights and leave its gradients in `gradients`, flat."""
        parameters = dict(model.named_parameters())
        offset = 0
        for name, size in self.sizes.items():
            parameter, piece = parameters[name], slice(offset, offset + size)
            parameter.data = self.weights[piece].view(parameter.shape)
            parameter.grad = gradients[piece].view(parameter.shape)
            offset = piece.stop

    def each(self, function: Callable[[Piece], T]) -> list[T]:
        """What `function` returns for each piece, in their order."""
        return [function(piece) for piece in self.pieces]

    def clip(self, largest_norm: float) -> Tensor:
        """Scale the gradients down to `largest_norm` (0: leave them); returns the norm they had, on their device."""
        norms = self.each(lambda piece: torch.linalg.vector_norm(self.gradients[piece.where]))
        norm: Tensor = torch.linalg.vector_norm(torch.stack(norms))
        if largest_norm > 0:
            scale = torch.clamp(largest_norm / (norm + 1e-6), max=1.0)
            self.each(lambda piece: self.gradients[piece.where].mul_(scale))
        return norm

    def step(self) -> None:
        """One update of the weights from the gradients."""
        self.each(self._update if ADAMW_IS_AS_KNOWN else self._update_by_optimizer)

    @torch.no_grad()
    def _update(self, piece: Piece) -> None:
        # torch's function, not its `Optimizer`, which loads the compiler with the first step: a second at the start of
        # every attempt. It is public (torch.optim.adamw.__all__) but undocumented; checked with torch 2.13.
        adamw(
            [self.weights[piece.where]],
            [self.gradients[piece.where]],
            [self.first_moment[piece.where]],
            [self.second_moment[piece.where]],
            [],
            [piece.updates],
            fused=self.weights.device.type in ("cpu", "cuda"),
            amsgrad=False,
            beta1=self.betas[0],
            beta2=self.betas[1],
            lr=self.rate,
            weight_decay=piece.weight_decay,
            eps=1e-8,
            maximize=False,
        )

    def _update_by_optimizer(self, piece: Piece) -> None:
        weights = nn.Parameter(self.weights[piece.where])
        weights.grad = self.gradients[piece.where]
        optimizer = torch.optim.AdamW(
            [weights],
            lr=self.rate,
            betas=self.betas,
            eps=1e-8,
            weight_decay=piece.weight_decay,
            fused=self.weights.device.type in ("cpu", "cuda"),
        )
        moments = {"exp_avg": self.first_moment[piece.where], "exp_avg_sq": self.second_moment[piece.where]}
        optimizer.state[weights] = {"step": piece.updates, **moments}
        optimizer.step()

    @property
    def param_groups(self) -> list[dict[str, list[nn.Parameter]]]:
        """What a gradient scaler unscales."""
        flat = nn.Parameter(self.weights)
        flat.grad = self.gradients
        return [{"params": [flat]}]

    @property
    def updates(self) -> int:
        """How many updates AdamW has made: fewer than steps if a gradient scaler skipped some."""
        return int(self.pieces[0].updates.item())

    @updates.setter
    def updates(self, count: int) -> None:
        for piece in self.pieces:
            piece.updates.fill_(count)

    def named(self, flat: Tensor) -> Iterator[tuple[str, Tensor]]:
        """The pieces of a tensor laid out like the weights, by parameter name and in its shape."""
        pieces = torch.split(flat, list(self.sizes.values()))
        for (name, parameter), piece in zip(self.parameters.items(), pieces, strict=True):
            yield name, piece.view(parameter.shape)


def _is_as_known(function: Callable[..., object]) -> bool:
    names = list(inspect.signature(function).parameters)
    wanted = ["params", "grads", "exp_avgs", "exp_avg_sqs", "max_exp_avg_sqs", "state_steps"]
    options = {"fused", "amsgrad", "beta1", "beta2", "lr", "weight_decay", "eps", "maximize"}
    return names[: len(wanted)] == wanted and options <= set(names)


ADAMW_IS_AS_KNOWN = _is_as_known(adamw)
"""Whether torch's function takes what `_update` gives it; otherwise its optimizer makes the same update, slower."""
