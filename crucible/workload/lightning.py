"""Lightning: checkpoints when Crucible wants them, and resume by Lightning's own means.

    callback = CrucibleCallback()
    trainer = lightning.Trainer(..., callbacks=[callback])
    trainer.fit(model, loader, ckpt_path=callback.resume_from)

Lightning restores weights, optimizer, schedule and loops; this adds the random states, which it leaves out. The resume
is exact with a loader that has a position to save (torchdata's StatefulDataLoader): a plain DataLoader begins its epoch
again. One process only: Lightning makes its group of processes after `ckpt_path` was read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback

from crucible.errors import ConfigError
from crucible.workload.published import PublishingSession

__all__ = ["CrucibleCallback"]

_FILE = "lightning.ckpt"


class CrucibleCallback(Callback):  # type: ignore[misc, unused-ignore]
    """Saves at Crucible's interval, on SIGTERM (then exits with 75) and at the end, and writes losses as metrics.

    `train_loss` is what `training_step` returns, every `log_every_n_steps`; `val_loss` is what the module logs under
    that name.

    Args:
        folder, every_seconds, keep: as for `crucible.workload.resume_or_start`.

    Raises ConfigError in one of several processes.
    """

    def __init__(self, folder: str | Path | None = None, every_seconds: float | None = None, keep: int = 3) -> None:
        self._settings = (folder, every_seconds, keep)
        self._opened: PublishingSession | None = None
        self._seen_step = -1

    @property
    def resume_from(self) -> str | None:
        """The checkpoint for `Trainer.fit(ckpt_path=…)`, or None."""
        found = self._session.resumed_from
        return str(found / _FILE) if found else None

    @property
    def _session(self) -> PublishingSession:
        if self._opened is None:
            _require_one_process(int(os.environ.get("WORLD_SIZE") or 1))
            self._opened = PublishingSession(*self._settings)
        return self._opened

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:
        _require_one_process(trainer.world_size)

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        self._session.restore_generators()  # the loader's iterator, which draws from them, is there by now
        if not all(hasattr(loader, "state_dict") for loader in trainer.fit_loop._combined_loader.flattened):
            self._session.is_not_exact("a plain DataLoader begins its epoch again; use torchdata's StatefulDataLoader")
        self._session.listen()  # Lightning has just put a handler of its own in the place
        self._seen_step = trainer.global_step

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step
        if step == self._seen_step:
            return  # gradients are being accumulated
        self._seen_step = step
        session = self._session
        session.reached(step)
        if step % trainer.log_every_n_steps == 0 and isinstance(outputs, Mapping) and "loss" in outputs:
            session.log(step, loss=outputs["loss"])
        stopping, due = session.decide()
        if stopping or due:
            self._publish(trainer, step, stopping)
        if stopping:
            session.exit()

    def on_validation_end(self, trainer: Any, pl_module: Any) -> None:
        loss = trainer.callback_metrics.get("val_loss")
        if loss is not None and not trainer.sanity_checking:
            self._session.reached(trainer.global_step)
            self._session.note(trainer.global_step, {"val_loss": loss})

    def on_train_end(self, trainer: Any, pl_module: Any) -> None:
        self._session.reached(trainer.global_step)
        self._publish(trainer, trainer.global_step, must=True)
        self._session.close()

    def _publish(self, trainer: Any, step: int, must: bool) -> None:
        self._session.publish(step, lambda folder: trainer.save_checkpoint(folder / _FILE), must)


def _require_one_process(count: int) -> None:
    if count > 1:
        raise ConfigError(
            f"CrucibleCallback saves a Lightning training of one process, not of {count}: use Trainer(devices=1), or "
            "let Lightning's ModelCheckpoint save and run the script with `workload: lightning`"
        )
