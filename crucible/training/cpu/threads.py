"""Threads that each compute on their own, instead of all of them at every operator."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from typing import TypeVar

import torch

__all__ = ["Threads"]

Result = TypeVar("Result")


class Threads:
    """`count` threads, the calling one among them, each of which gets one core from torch."""

    def __init__(self, count: int) -> None:
        self.count = count
        # A thread that has not asked for another number would have as many helpers of its own as the first one has.
        self._others = ThreadPoolExecutor(max(count - 1, 1), initializer=torch.set_num_threads, initargs=(1,))

    def each(self, function: Callable[[int], Result]) -> list[Result]:
        """What `function` returns for 0 to count - 1, one call per thread. An error is raised when all have ended."""
        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        try:
            others = [self._others.submit(function, number) for number in range(1, self.count)]
            try:
                first = function(0)
            finally:
                wait(others)
        finally:
            torch.set_num_threads(threads)
        return [first, *(other.result() for other in others)]
