"""How checkpoints are saved: a snapshot at a step boundary, written while training continues.

The step loop pauses for the copy of the state into one reused buffer, not for the disk. If the buffer is still
being written when the next save is due, that one waits for a later step. Where memory has no room for the buffer, or
the process that writes was killed, the loop waits for each save instead, and logs it.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from crucible.container import available_memory_bytes
from crucible.errors import CheckpointError
from crucible.training.writer import BackgroundWriter
from crucible.workload.folders import FilePlan, write_folder

__all__ = ["SaveReport", "Saver", "TensorFile"]


@dataclass(frozen=True)
class SaveReport:
    """The cost of a finished save: the step loop's pause, the time until it was durable, and its size in bytes."""

    step: int
    stall_seconds: float
    write_seconds: float
    bytes: int


TensorFile = tuple[list[Tensor], bytes]
"""Flat float32 tensors that follow each other in a safetensors file, and the header that names their pieces."""


class Saver:
    """Saves named groups of flat float32 tensors, each group one safetensors file, and small files beside them."""

    def __init__(
        self, parent: Path, tensors: Mapping[str, TensorFile], lock: int | None, log: Callable[[str], None]
    ) -> None:
        """`tensors`: by file name; `lock`: see `lock_folder`."""
        self.parent = parent
        self.saved_step: int | None = None
        self._tensors = tensors
        self._floats = sum(tensor.numel() for group, _ in tensors.values() for tensor in group)
        self._writer = self._start_writer(lock)
        self._in_flight: tuple[int, float, float] | None = None  # step, start, stall
        if self._writer is None:
            log(
                f"memory has no room for a snapshot of {4e-6 * self._floats:,.1f} MB: training waits while checkpoints "
                f"are written"
            )
            return
        self._buffer = torch.from_numpy(self._writer.buffer)
        if any(tensor.is_cuda for group, _ in tensors.values() for tensor in group):
            # GPUs copy into page-locked memory several times as fast. Refused pinning only costs that speed.
            cudart = torch.cuda.cudart()  # type: ignore[no-untyped-call]
            cudart.cudaHostRegister(self._buffer.data_ptr(), 4 * self._floats, 0)

    def _start_writer(self, lock: int | None) -> BackgroundWriter | None:
        room = available_memory_bytes()
        if room < 5 * self._floats + (256 << 20):  # 4 bytes per float, and a quarter for what else will grow
            return None
        try:
            return BackgroundWriter(self._floats, lock)
        except OSError:  # a container's limit, which the machine's free memory does not show
            return None

    @property
    def busy(self) -> bool:
        """Whether a save is being written."""
        return self._in_flight is not None

    def save(self, step: int, small: Mapping[str, bytes], began: float) -> SaveReport | None:
        """Take the snapshot and let it be written; `began` is when the step loop stopped for it.

        Returns the report at once if there is no background writer, else `poll` will. Raises CheckpointError.
        """
        if self._writer is None or self._writer.gone:
            return self.save_now(step, small, began)
        files: list[tuple[FilePlan, slice]] = []
        start = 0
        for name, (group, header) in self._tensors.items():
            end = start
            for tensor in group:
                self._buffer[end : end + tensor.numel()].copy_(tensor, non_blocking=True)
                end += tensor.numel()
            files.append((FilePlan(name, header, finite=True), slice(start, end)))
            start = end
        if self._buffer.is_pinned():
            torch.cuda.synchronize()
        files += [(FilePlan(name, content), slice(0, 0)) for name, content in small.items()]
        self._writer.start(self.parent, step, files)
        self._in_flight = (step, began, time.perf_counter() - began)
        return None

    def save_now(self, step: int, small: Mapping[str, bytes], began: float) -> SaveReport:
        """Write in this process, at its full priority, and return when the checkpoint is durable."""
        files = []
        for name, (group, header) in self._tensors.items():
            bodies = tuple(memoryview(tensor.detach().cpu().numpy().data) for tensor in group)
            files.append(FilePlan(name, header, bodies, finite=True))
        files += [FilePlan(name, content) for name, content in small.items()]
        size = write_folder(self.parent, step, files)
        self.saved_step = step
        seconds = time.perf_counter() - began
        return SaveReport(step, seconds, seconds, size)

    def poll(self, *, wait: bool = False) -> SaveReport | None:
        """The report of the save in flight, once it is durable. Raises CheckpointError if it failed."""
        if self._writer is None or self._in_flight is None:
            return None
        step, began, stall = self._in_flight
        try:
            size = self._writer.finished(wait=wait)
        except CheckpointError:
            self._in_flight = None
            raise
        if size is None:
            return None
        self._in_flight = None
        self.saved_step = step
        return SaveReport(step, stall, time.perf_counter() - began, size)

    def close(self) -> None:
        """End the background writer, after the save that it may be at."""
        if self._writer is not None:
            self._writer.close()
