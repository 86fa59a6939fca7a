"""What makes training fast on CPUs, behind one door. Nothing here is imported where a GPU computes.

    choose_gemm   before torch is imported: which code multiplies float32 matrices
    accelerate    after the model is made: that code, memory that is kept, data-parallel replicas

The rest of the trainer reads, and computes, the same without it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple

from crucible.training.cpu.gemm import Backend, Gemm, choose_gemm

if TYPE_CHECKING:
    import torch

    from crucible.config import TrainConfig
    from crucible.training.cpu.replicas import Replicas
    from crucible.training.model import GPT
    from crucible.training.optimizer import FlatAdamW

__all__ = ["Acceleration", "Backend", "Gemm", "accelerate", "choose_gemm"]


class Acceleration(NamedTuple):
    """What the trainer uses instead of its own."""

    optimizer: FlatAdamW
    replicas: Replicas | None
    """None: one forward pass at a time, and torch divides each operator among the threads."""
    environment: dict[str, Any]
    """What of this may change the last bits of a result."""


def accelerate(
    model: GPT,
    config: TrainConfig,
    gemm: str,
    log: Callable[[str], None],
    *,
    precision: torch.dtype,
    compiled: bool,
) -> Acceleration:
    """Make a model on the CPU ready to train fast; `gemm` is what `choose_gemm` has chosen, `precision` autocast's."""
    import torch  # this package is imported before torch is, for `choose_gemm`

    from crucible.training.cpu.memory import keep_freed_memory
    from crucible.training.cpu.onednn import use_onednn
    from crucible.training.cpu.replicas import ReplicaAdamW, Replicas, replica_count
    from crucible.training.cpu.threads import Threads
    from crucible.training.optimizer import FlatAdamW

    keep_freed_memory()
    plain_float32 = precision == torch.float32 and not compiled
    if gemm == "onednn" and not (plain_float32 and use_onednn(model, log)):
        gemm = "mkl"
    # torch.compile sees one model, and a gradient scaler (float16) one backward pass.
    count = 1 if compiled or precision == torch.float16 else replica_count(config, model)
    optimizer, replicas = FlatAdamW(model, config), None
    if count > 1:
        threads = Threads(count)
        optimizer = ReplicaAdamW(model, config, threads)
        replicas = Replicas(model, optimizer, threads)
    return Acceleration(optimizer, replicas, {"threads": torch.get_num_threads(), "replicas": count, "gemm": gemm})
