"""The data-parallel group: one process, or several that `torchrun` or `launch` has started."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

# Its functions have the default group of the moment of their definition for a default argument. Imported later, as the
# optimizer does by way of torch._dynamo, they keep the group alive beyond `close`, and a thread of gloo's that frees a
# tensor while the interpreter ends aborts the process.
import torch.distributed.nn.functional
from torch import Tensor

from crucible.config import TrainConfig
from crucible.errors import ConfigError

__all__ = ["Processes"]


class Processes:
    """The group, seen from this process. With one process every method is free and changes nothing."""

    def __init__(self) -> None:
        self.count = int(os.environ.get("WORLD_SIZE", "1"))
        self.rank = int(os.environ.get("RANK", "0"))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if self.count > 1:
            # Gradients go by NCCL between GPUs, decisions by gloo: they must not wait for the GPU's queue.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=timedelta(hours=2))  # the first process evaluates alone

    @property
    def first(self) -> bool:
        """Whether this one evaluates, saves and reports."""
        return self.rank == 0

    def share(self, config: TrainConfig) -> int:
        """How many of a step's micro-batches each process computes. Raises ConfigError if they do not come out even."""
        steps = config.gradient_accumulation_steps
        if steps % self.count:
            raise ConfigError(
                f"gradient_accumulation_steps = {steps} cannot be divided among {self.count} processes; use "
                f"{config.processes_on(self.count)} of them, which trains the same, or another "
                f"gradient_accumulation_steps, which does not: {config.multiples_near(self.count)}"
            )
        return steps // self.count

    def average(self, tensor: Tensor) -> None:
        """Replace the tensor by its mean over the processes.

        One all-reduce over the flat gradients instead of DistributedDataParallel's buckets: those are laid out anew
        after the first step, so a resumed run would add in another order and differ in bits.
        """
        if self.count > 1:
            dist.all_reduce(tensor)
            tensor /= self.count

    def any(self, *flags: bool) -> list[bool]:
        """Each flag: whether any process has it set."""
        if self.count == 1:
            return list(flags)
        votes = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX)
        return [bool(vote) for vote in votes.tolist()]

    def gather(self, item: Any) -> list[Any]:
        """Every process's item, in the order of their ranks."""
        if self.count == 1:
            return [item]
        items: list[Any] = [None] * self.count
        dist.all_gather_object(items, item)
        return items

    def close(self) -> None:
        """Leave the group."""
        if self.count > 1:
            dist.destroy_process_group()
