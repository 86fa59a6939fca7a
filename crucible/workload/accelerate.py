"""Accelerate: `resume_or_start` for everything that an Accelerator has prepared.

    model, optimizer, loader = accelerator.prepare(model, optimizer, loader)
    run = crucible.workload.accelerate.resume_or_start(accelerator)

The position in the data is saved as well. Loaders that were prepared with
`DataLoaderConfiguration(use_stateful_dataloader=True)` save it themselves, and go on at once. For torch's own
`DataLoader`, the order of its epoch is drawn again as it was, and the batches that had been given are read and skipped.
"""

from __future__ import annotations

from typing import Any

import torch

from crucible.errors import ConfigError
from crucible.workload import run
from crucible.workload.rng import capture_rng, restore_rng

__all__ = ["resume_or_start"]

_CPU = torch.device("cpu")
"""Loaders draw from no other device's generator, and asking a GPU's would wait for it."""


def resume_or_start(accelerator: Any, **options: Any) -> run.Run:
    """As `crucible.workload.resume_or_start`, for the models, optimizers, schedulers, loaders and registered objects of
    the accelerator; `options` are passed on, further objects by name included.

    Raises:
        ConfigError: sharded models (FSDP, DeepSpeed, Megatron), whose state no single process has.
    """
    kind = str(accelerator.distributed_type).rpartition(".")[2]
    if kind in ("FSDP", "DEEPSPEED", "MEGATRON_LM"):
        raise ConfigError(f"{kind}: no process has the whole state; use accelerator.save_state and the contract")
    loaders = accelerator._dataloaders
    plain = [loader for loader in loaders if not loader.use_stateful_dataloader]
    followed = [loader for loader in plain if type(loader).__name__ == "DataLoaderShard"]
    objects = {}
    for name, values in (
        ("model", map(accelerator.unwrap_model, accelerator._models)),
        ("optimizer", accelerator._optimizers),
        ("scheduler", accelerator._schedulers),
        ("loader", (loader for loader in loaders if loader.use_stateful_dataloader)),
        ("position", (_Position(loader, accelerator.num_processes) for loader in followed)),
        ("registered", accelerator._custom_objects),
    ):
        for number, value in enumerate(values, start=1):
            objects[name if number == 1 else f"{name}_{number}"] = value
    if accelerator.scaler is not None:
        objects["scaler"] = accelerator.scaler
    started = run.resume_or_start(**objects, **options)
    if len(followed) < len(plain):
        started.is_not_exact("a loader with dispatch_batches has no position that could be saved")
    return started


class _Position:
    """Where a plain loader of one epoch after another is.

    A loader is one batch ahead: while the script works on batch i, batch i + 1 has been read. Its draws come from the
    same generators as the script's, so the states before each of both reads are kept.
    """

    def __init__(self, loader: Any, processes: int) -> None:
        self._loader, self._alone = loader, processes == 1
        self._begin_epoch, self._note_batch = loader.begin, loader._update_state_dict
        loader.begin, loader._update_state_dict = self._begin, self._next
        self._iteration, self._given, self._over = loader.iteration, 0, False
        self._began: dict[str, Any] = {}
        self._ahead: dict[str, Any] = {}
        self._order: torch.Tensor | None = None
        """The state of the sampler's own generator, where it has one, when the epoch began."""
        self._resumed: dict[str, Any] | None = None
        self._script: dict[str, Any] = {}
        """The generators as the script had them when it resumed."""

    def state_dict(self) -> dict[str, Any]:
        middle = self._given > 0 and not self._over
        generator = _generator_of(self._loader)
        return {
            "iteration": self._iteration + self._over,
            "given": self._given if middle else 0,
            "began": self._began if middle else {},
            "ahead": self._ahead if middle else {},
            "order": self._order if middle else generator.get_state() if generator else None,
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self._loader.iteration = self._iteration = state["iteration"]
        self._given, self._over = 0, False
        generator = _generator_of(self._loader)
        if generator is not None and state["order"] is not None:
            generator.set_state(state["order"])
        self._resumed = state if state["given"] else None

    def _begin(self) -> None:
        """An epoch begins; nothing of it has been drawn yet."""
        self._begin_epoch()
        self._loader.skip_batches = 0
        if self._resumed is not None:
            self._script = capture_rng(_CPU)
            self._loader.skip_batches = self._resumed["given"]
            self._restore(self._resumed["began"])
        generator = _generator_of(self._loader)
        self._order = generator.get_state() if generator is not None else None
        self._iteration, self._given, self._over = self._loader.iteration, 0, False
        self._began = capture_rng(_CPU)

    def _next(self) -> None:
        """Batch number `given` comes next, and the one after it is read now; called once more at the epoch's end."""
        self._note_batch()
        if self._loader.end_of_dataloader:
            self._over = True
            return
        if self._resumed is not None and self._given == self._resumed["given"] - 1:
            self._restore(self._resumed["ahead"])
        elif self._resumed is not None and self._given == self._resumed["given"]:
            restore_rng(self._script, _CPU)
            self._resumed = None
        self._ahead = capture_rng(_CPU)
        self._given += 1

    def _restore(self, generators: dict[str, Any]) -> None:
        """Those of the first process are saved; with several, the order comes from a generator that they share."""
        if self._alone:
            restore_rng(generators, _CPU)


def _generator_of(loader: Any) -> torch.Generator | None:
    """The generator that the loader's order is drawn from; None where that is torch's own, or there is no order."""
    batches = getattr(loader, "batch_sampler", None)
    inner = getattr(batches, "batch_sampler", None)
    for holder in (loader, batches, inner):
        generator = getattr(getattr(holder, "sampler", None), "generator", None)
        if isinstance(generator, torch.Generator):
            return generator
    return None
