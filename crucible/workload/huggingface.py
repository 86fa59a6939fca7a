"""Hugging Face's Trainer: checkpoints when Crucible wants them, and exact resume by the Trainer's own means.

    callback = CrucibleCallback()
    trainer = transformers.Trainer(..., callbacks=[callback])
    trainer.train(resume_from_checkpoint=callback.resume_from)

The Trainer saves and restores its own folder (weights, optimizer, schedule, random states, position in the data). Those
files are its own: the optimizer's is one that `torch.load(weights_only=True)` reads.
"""

from __future__ import annotations

import os
import shutil
from functools import partial
from pathlib import Path
from typing import Any

from transformers import TrainerCallback

from crucible.errors import ConfigError
from crucible.workload.published import PublishingSession

__all__ = ["CrucibleCallback"]

_NAMES = {"loss": "train_loss", "eval_loss": "val_loss", "grad_norm": "gradient_norm"}


class CrucibleCallback(TrainerCallback):  # type: ignore[misc, unused-ignore]
    """Saves at Crucible's interval, on SIGTERM (then exits with 75) and at the end, and writes the logs as metrics.

    Args:
        folder, every_seconds, keep: as for `crucible.workload.resume_or_start`.
    """

    def __init__(self, folder: str | Path | None = None, every_seconds: float | None = None, keep: int = 3) -> None:
        self._settings = (folder, every_seconds, keep)
        self._opened: PublishingSession | None = None
        self._own_save = self._stopping = False

    @property
    def resume_from(self) -> str | None:
        """The checkpoint for `Trainer.train(resume_from_checkpoint=…)`, or None; read it after the Trainer is made."""
        found = self._session.resumed_from
        return str(found) if found else None

    @property
    def _session(self) -> PublishingSession:
        if self._opened is None:  # not before the Trainer has set up torch.distributed
            self._opened = PublishingSession(*self._settings)
        return self._opened

    def on_train_begin(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if args.save_only_model:
            raise ConfigError("save_only_model=True leaves out the optimizer: a run cannot be resumed from that")
        if args.ignore_data_skip:
            self._session.is_not_exact("ignore_data_skip=True: a resumed epoch begins again with its first batch")
        self._session.listen()

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        session = self._session
        session.reached(state.global_step)
        self._stopping, due = session.decide()
        if self._stopping or due or state.global_step >= state.max_steps:
            self._own_save = not control.should_save
            control.should_save = True

    def on_save(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        saved = Path(args.output_dir) / f"checkpoint-{state.global_step}"
        # What only Crucible asked for would stay in output_dir for ever; but the best model is looked for there.
        move = self._own_save and not args.load_best_model_at_end
        must = self._stopping or state.global_step >= state.max_steps
        self._session.publish(state.global_step, partial(_move if move else _link, saved), must)
        self._own_save = False
        if self._stopping:
            self._session.exit()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        if not logs or "train_runtime" in logs:  # the summary at the end: means over the whole run
            return
        figures = {_NAMES.get(name, name): value for name, value in logs.items() if isinstance(value, int | float)}
        self._session.reached(state.global_step)
        self._session.note(state.global_step, figures)

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        self._session.close()


def _move(source: Path, target: Path) -> None:
    for path in source.iterdir():
        shutil.move(path, target / path.name)
    source.rmdir()


def _link(source: Path, target: Path) -> None:
    """The Trainer never changes the files of a checkpoint, so names for the same bytes are enough where they can be."""

    def link(path: str, to: str) -> str:
        try:
            os.link(path, to)
        except OSError:  # another file system
            shutil.copy2(path, to)
        return to

    shutil.copytree(source, target, copy_function=link, dirs_exist_ok=True)
