"""Data-parallel replicas: the model once per thread, with the same weights in memory and gradients of its own.

torch divides an operator among the threads and has them wait for each other before the next, some hundreds of times per
step. A small model gains little by that, and whatever else takes a core for a moment holds up all of them. Here each
thread trains on its own rows of the batch with the whole model, and they meet when the gradients are added.
"""

from __future__ import annotations

import copy
import itertools
import math
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from crucible.config import TrainConfig
from crucible.training.cpu.threads import Threads
from crucible.training.optimizer import FlatAdamW, Piece, T

__all__ = ["ReplicaAdamW", "Replicas", "replica_count"]

_FURTHER_GRADIENT_BYTES = 1 << 30

Forward = Callable[[Tensor, Tensor], Tensor]
Batches = Iterable[tuple[Tensor, Tensor]]


def replica_count(config: TrainConfig, model: nn.Module) -> int:
    """How many threads of a CPU should divide the rows of a batch.

    1 leaves every operator to all threads: if there are fewer rows than threads, if the gradients of the further
    replicas would take more than a GiB of memory, or with dropout, since all threads of a process draw from one
    generator, in an order that would not repeat.
    """
    threads = torch.get_num_threads()
    rows = config.batch_size if config.micro_batch == "auto" else config.micro_batch
    gradient_bytes = 4 * sum(parameter.numel() for parameter in model.parameters())
    if config.dropout > 0 or rows < threads or (threads - 1) * gradient_bytes > _FURTHER_GRADIENT_BYTES:
        return 1
    rows_each = -(-rows // threads)
    return -(-rows // rows_each)


class ReplicaAdamW(FlatAdamW):
    """The same update, with both groups of weights divided among the threads."""

    def __init__(self, model: nn.Module, config: TrainConfig, threads: Threads) -> None:
        super().__init__(model, config)
        self._threads, groups = threads, self.pieces
        # By thread, then by group: the norm of the gradients adds up in this order.
        self.pieces = [piece.cut(n, threads.count) for n in range(threads.count) for piece in groups]

    def each(self, function: Callable[[Piece], T]) -> list[T]:
        own = len(self.pieces) // self._threads.count

        def of_thread(number: int) -> list[T]:
            return [function(piece) for piece in self.pieces[number * own : (number + 1) * own]]

        return list(itertools.chain.from_iterable(self._threads.each(of_thread)))


class Replicas:
    """Computes a step's gradients, each thread those of its own rows of every batch."""

    def __init__(self, model: nn.Module, optimizer: FlatAdamW, threads: Threads) -> None:
        self.count = threads.count
        self._threads, self._optimizer = threads, optimizer
        further = [copy.deepcopy(model) for _ in range(threads.count - 1)]
        self.models: list[nn.Module] = [model, *further]
        self._gradients = [optimizer.gradients, *(torch.zeros_like(optimizer.gradients) for _ in further)]
        for replica, gradients in zip(further, self._gradients[1:], strict=True):
            optimizer.attach(replica, gradients)

    def compute_gradients(
        self,
        accumulate: Callable[[Forward, Batches, float], Tensor],
        batch: Callable[[int, range], tuple[Tensor, Tensor]],
        batches: int,
        batch_size: int,
    ) -> Tensor:
        """Leave the gradients of the mean loss over all batches in the optimizer, and return that loss.

        `accumulate` runs forward and backward over batches and weights each loss; `batch(number, rows)` gives inputs
        and targets of some rows of a batch. Both are called from all threads.
        """
        rows_each = math.ceil(batch_size / self.count)

        def of_thread(number: int) -> Tensor:
            self._gradients[number].zero_()
            rows = range(batch_size)[number * rows_each : (number + 1) * rows_each]
            if not rows:  # fewer rows at a time than threads
                return torch.zeros(())
            own = (batch(number_of_batch, rows) for number_of_batch in range(batches))
            return accumulate(self.models[number], own, len(rows) / (batch_size * batches))

        losses = self._threads.each(of_thread)
        self._optimizer.each(self._add_gradients)
        return torch.stack(losses).sum()

    def _add_gradients(self, piece: Piece) -> None:
        for gradients in self._gradients[1:]:
            self._optimizer.gradients[piece.where] += gradients[piece.where]
