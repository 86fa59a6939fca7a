"""Threads that each compute on their own, instead of all at every operator.

torch divides an operator among the threads and has them wait for each other before the next, some hundreds of times in
a step. A small model gains little by that, and whatever else takes a core for a moment holds up all of them. Here each
thread trains on its own rows of the batch with the whole model, and they meet when the gradients are added.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

from crucible.config import TrainConfig

__all__ = ["Team", "team_size"]

Answer = TypeVar("Answer")

_BYTES_OF_FURTHER_GRADIENTS = 1 << 30


def team_size(config: TrainConfig, parameters: int) -> int:
    """How many threads of a CPU should divide the rows of a batch in float32 or bfloat16, uncompiled.

    1 leaves every operator to all threads: if there are fewer rows than threads, if the gradients, 4 bytes for each of
    the `parameters`, would take more than a GiB of memory for the further threads, or with dropout, since all threads
    of a process draw from one generator, in an order that would not repeat.
    """
    threads, rows = torch.get_num_threads(), config.batch_size
    if config.dropout > 0 or rows < threads or (threads - 1) * 4 * parameters > _BYTES_OF_FURTHER_GRADIENTS:
        return 1
    rows_each = -(-rows // threads)
    return -(-rows // rows_each)


class Team:
    """`count` threads, the calling one among them. With one thread torch is left as it is."""

    def __init__(self, count: int) -> None:
        self.count = count
        # A thread that has not asked for another number would have as many helpers of its own as the first one has.
        self._others = ThreadPoolExecutor(max(count - 1, 1), initializer=torch.set_num_threads, initargs=(1,))

    def each(self, function: Callable[[int], Answer]) -> list[Answer]:
        """What `function` returns for 0 to count - 1, each called in a thread in which torch uses one core."""
        if self.count == 1:
            return [function(0)]
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            others = [self._others.submit(function, number) for number in range(1, self.count)]
            try:
                answer = function(0)
            finally:
                wait(others)
        finally:
            torch.set_num_threads(threads)
        return [answer, *(other.result() for other in others)]
