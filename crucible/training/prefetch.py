"""The next micro-batch is gathered, pinned and copied to the GPU while the current one is computed."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple

import torch
from torch import Tensor

__all__ = ["Prefetch", "Rows"]


class Rows(NamedTuple):
    """Some rows of a step, by their numbers within it."""

    step: int
    first: int
    length: int


class Prefetch:
    """Brings rows to a device in a thread and, on a GPU, by a stream of its own; the order never changes what comes."""

    def __init__(self, device: torch.device, gather: Callable[[Rows], Tensor]) -> None:
        """`gather` returns the rows in the host's memory; it is called from another thread."""
        self._device, self._gather = device, gather
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None  # type: ignore[no-untyped-call]
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="prefetch")
        self._next: tuple[Rows, Future[Tensor]] | None = None

    def take(self, rows: Rows, following: Rows) -> Tensor:
        """The rows, on the device; begins to bring the `following` ones."""
        ahead, self._next = self._next, None
        future = ahead[1] if ahead and ahead[0] == rows else self._thread.submit(self._bring, rows)
        tensor = future.result()
        if self._stream is not None:
            current = torch.cuda.current_stream(self._device)
            current.wait_stream(self._stream)
            tensor.record_stream(current)  # its memory must not be used again before this stream is done with it
        self._next = following, self._thread.submit(self._bring, following)
        return tensor

    def close(self) -> None:
        """End the thread; what it has brought is dropped."""
        self._next = None
        self._thread.shutdown(cancel_futures=True)

    def _bring(self, rows: Rows) -> Tensor:
        window = self._gather(rows)
        if self._stream is None:
            return window.to(self._device)
        with torch.cuda.device(self._device), torch.cuda.stream(self._stream):
            return window.pin_memory().to(self._device, non_blocking=True)
