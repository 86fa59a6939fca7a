"""The data-parallel group: one process, or several that `torchrun` or `launch` has started."""

from __future__ import annotations

import os
from datetime import timedelta

import torch
import torch.distributed as dist

# Its functions have the default group of the moment of their definition for a default argument. Imported later, as the
# optimizer does by way of torch._dynamo, they keep the group alive beyond `close`, and a thread of gloo's that frees a
# tensor while the interpreter ends aborts the process.
import torch.distributed.nn.functional
from torch import Tensor

from crucible.config import TrainConfig
from crucible.errors import ConfigError
from crucible.workload.processes import ProcessGroup

__all__ = ["Processes"]


class Processes(ProcessGroup):
    """The trainer's group, made from what `torchrun` or `launch` say of this process."""

    def __init__(self) -> None:
        super().__init__(int(os.environ.get("WORLD_SIZE", "1")), int(os.environ.get("RANK", "0")))
        self.local_rank = int(os.environ.get("LOCAL_RANK", "0"))
        if self.count > 1:
            # Gradients go by NCCL between GPUs, decisions by gloo: they must not wait for the GPU's queue.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=timedelta(hours=2))  # the first process evaluates alone

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

    def close(self) -> None:
        """Leave the group."""
        if self.count > 1:
            dist.destroy_process_group()
