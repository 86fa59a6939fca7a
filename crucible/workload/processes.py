"""A data-parallel group seen from one of its processes, when torch.distributed has one."""

from __future__ import annotations

import sys
from typing import Any

__all__ = ["ProcessGroup"]


class ProcessGroup:
    """How the processes agree on what to do next. With one process every method is free and changes nothing.

    `group`: the torch.distributed group that the messages go by; None: the default one.
    """

    def __init__(self, count: int = 1, rank: int = 0, group: Any = None) -> None:
        self.count, self.rank, self._group = count, rank, group

    @classmethod
    def current(cls) -> ProcessGroup:
        """The group that the script has initialised, or this process alone. Every process must call it."""
        if "torch" not in sys.modules:
            return cls()
        import torch.distributed as dist

        if not dist.is_available() or not dist.is_initialized() or dist.get_world_size() == 1:
            return cls()
        # Decisions go by gloo: they must not wait for the GPU's queue.
        return cls(dist.get_world_size(), dist.get_rank(), dist.new_group(backend="gloo"))

    @property
    def first(self) -> bool:
        """Whether this one saves and reports."""
        return self.rank == 0

    def any(self, *flags: bool) -> list[bool]:
        """Each flag: whether any process has it set."""
        if self.count == 1:
            return list(flags)
        import torch
        import torch.distributed as dist

        votes = torch.tensor(flags, dtype=torch.int32)
        dist.all_reduce(votes, op=dist.ReduceOp.MAX, group=self._group)
        return [bool(vote) for vote in votes.tolist()]

    def gather(self, item: Any) -> list[Any]:
        """Every process's item, in the order of their ranks."""
        if self.count == 1:
            return [item]
        import torch.distributed as dist

        items: list[Any] = [None] * self.count
        dist.all_gather_object(items, item, group=self._group)
        return items
