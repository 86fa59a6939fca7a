"""Accelerate: `resume_or_start` for everything that an Accelerator has prepared.

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    run = crucible.workload.accelerate.resume_or_start(accelerator)

The position in the data is saved if the loaders were prepared with
`DataLoaderConfiguration(use_stateful_dataloader=True)`. With shuffling, give `prepare` torchdata's
`StatefulDataLoader`: torch's own `DataLoader` keeps its sampler, whose order is drawn anew when a run resumes.
"""

from __future__ import annotations

from typing import Any

from crucible.errors import ConfigError
from crucible.workload import run

__all__ = ["resume_or_start"]


def resume_or_start(accelerator: Any, **options: Any) -> run.Run:
    """As `crucible.workload.resume_or_start`, for the models, optimizers, schedulers, loaders and registered objects of
    the accelerator; `options` are passed on, further objects by name included.

    Raises:
        ConfigError: sharded models (FSDP, DeepSpeed, Megatron), whose state no single process has.
    """
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise ConfigError(f"{kind}: no process has the whole state; use accelerator.save_state and the contract")
    objects = {}
    for name, values in (
        ("model", map(accelerator.unwrap_model, accelerator._models)),
        ("optimizer", accelerator._optimizers),
        ("scheduler", accelerator._schedulers),
        ("loader", (loader for loader in accelerator._dataloaders if loader.use_stateful_dataloader)),
        ("registered", accelerator._custom_objects),
    ):
        for number, value in enumerate(values, start=1):
            objects[name if number == 1 else f"{name}_{number}"] = value
    if accelerator.scaler is not None:
        objects["scaler"] = accelerator.scaler
    return run.resume_or_start(**objects, **options)
