"""The model once for each thread of a team: the same weights in memory, gradients of its own."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor, nn

from crucible.training.optimizer import FlatAdamW

__all__ = ["Replicas"]


class Replicas:
    """Computes a step's gradients, each thread of the optimizer's team those of its own rows of every batch.

    `forward` is the model, or what it was compiled to. `autocast` makes a context: one cannot serve several threads.
    """

    def __init__(
        self,
        model: nn.Module,
        forward: Callable[[Tensor, Tensor], Tensor],
        optimizer: FlatAdamW,
        autocast: Callable[[], AbstractContextManager[Any]],
        scaler: torch.amp.GradScaler,
    ) -> None:
        self.optimizer, self.autocast, self.scaler = optimizer, autocast, scaler
        further = [copy.deepcopy(model) for _ in range(optimizer.team.count - 1)]
        self.forwards: list[Callable[[Tensor, Tensor], Tensor]] = [forward, *further]
        self._gradients = [optimizer.gradients, *(torch.zeros_like(optimizer.gradients) for _ in further)]
        for replica, gradients in zip(further, self._gradients[1:], strict=True):
            optimizer.share(replica, gradients)

    def compute_gradients(
        self, batch: Callable[[int, range], tuple[Tensor, Tensor]], batches: int, batch_size: int
    ) -> Tensor:
        """Leave the gradients of the mean loss over all batches in the optimizer, and return that loss.

        `batch(number, rows)` gives inputs and targets of some rows of a batch; it is called from all threads.
        """
        each = math.ceil(batch_size / self.optimizer.team.count)

        def of_thread(number: int) -> Tensor:
            gradients, forward = self._gradients[number], self.forwards[number]
            gradients.zero_()
            loss_sum = torch.zeros((), device=gradients.device)
            rows = range(batch_size)[number * each : (number + 1) * each]
            share = len(rows) / (batch_size * batches)
            for number_of_batch in range(batches):
                inputs, targets = batch(number_of_batch, rows)
                with self.autocast():
                    loss = forward(inputs, targets) * share
                self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
                loss_sum += loss.detach()
            return loss_sum

        losses = self.optimizer.team.each(of_thread)
        self.optimizer.add(self._gradients[1:])
        return torch.stack(losses).sum()
