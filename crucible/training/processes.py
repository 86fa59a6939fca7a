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
        self.one_machine = int(os.environ.get("LOCAL_WORLD_SIZE", self.count)) == self.count
        self._parts: tuple[Tensor, Tensor] | None = None
        if self.count > 1:
            # Gradients go by NCCL between GPUs, decisions by gloo: they must not wait for the GPU's queue.
            backend = "cpu:gloo,cuda:nccl" if torch.cuda.is_available() else "gloo"
            dist.init_process_group(backend, timeout=timedelta(hours=2))  # the first process evaluates alone

    def share(self, config: TrainConfig) -> int:
        """How many rows of a step each process computes. Raises ConfigError if they do not come out even."""
        if config.rows_per_step % self.count:
            raise ConfigError(
                f"gradient_accumulation_steps = {config.gradient_accumulation_steps} cannot be divided among "
                f"{self.count} processes; use {config.processes_on(self.count)} of them, which trains the same, or "
                f"another gradient_accumulation_steps, which does not: {config.multiples_near(self.count)}"
            )
        return config.rows_per_step // self.count

    def average(self, tensor: Tensor) -> None:
        """Replace the tensor by its mean over the processes; equal bits for an equal number of nodes and processes.

        One exchange of the flat gradients instead of DistributedDataParallel's buckets: those are laid out again after
        the first step, so a resumed run would add in another order and differ in bits.
        """
        if self.count == 1:
            return
        if self.one_machine:  # a ring or tree that is the same each time
            dist.all_reduce(tensor)
            tensor /= self.count
            return
        self._average_in_order(tensor)

    def _average_in_order(self, tensor: Tensor) -> None:
        """Between machines: each process adds up one part of the tensor, in the order of the ranks, and shares it.

        It carries as much as an all-reduce. NCCL chooses how to all-reduce by what it finds of the network, which may
        be another one for the next attempt; here the order is fixed whatever the way.
        """
        flat = tensor.view(-1)
        part = -(-flat.numel() // self.count)
        if self._parts is None or self._parts[0].numel() != part * self.count or self._parts[0].dtype != flat.dtype:
            self._parts = flat.new_zeros(part * self.count), flat.new_zeros(part * self.count)
        sent, received = self._parts
        sent[: flat.numel()].copy_(flat)
        dist.all_to_all_single(received, sent)
        own, *others = torch.split(received, part)
        for other in others:
            own += other
        own /= self.count
        dist.all_gather([*torch.split(sent, part)], own)
        flat.copy_(sent[: flat.numel()])

    def close(self) -> None:
        """Leave the group."""
        if self.count > 1:
            dist.destroy_process_group()
