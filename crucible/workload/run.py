"""`resume_or_start`: give a script exact resume, checkpoints at the right moments and metrics.

    run = crucible.workload.resume_or_start(model, optimizer, scheduler)
    for step in run.steps(10_000):
        loss = train_one_step()
        run.log(step, loss=loss)
        run.maybe_save(step)

Started by Crucible, it follows `docs/workload-contract.md`. Started by hand, it does the same with a plain folder.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from crucible.workload.folders import RNG, STATE, FilePlan, write_folder
from crucible.workload.objects import OBJECTS, Objects
from crucible.workload.session import DEFAULT_FOLDER, Session

__all__ = ["DEFAULT_FOLDER", "Run", "resume_or_start"]


def resume_or_start(
    *objects: Any,
    extra: dict[str, Any] | None = None,
    folder: str | Path | None = None,
    every_seconds: float | None = None,
    keep: int = 3,
    **named: Any,
) -> Run:
    """Load the newest checkpoint into `objects`, if there is one, and return the run that saves them from here on.

    Call it once everything is made and seeded, and under torch.distributed in every process after
    `init_process_group`. The random states of Python, numpy, torch and CUDA are saved and restored too, so a
    deterministic script ends with the same bits however often it is interrupted.

    Args:
        objects, named: what has a `state_dict` and `load_state_dict` (module, optimizer, scheduler, GradScaler,
            torchdata's StatefulDataLoader), and generators of torch, numpy and `random`. By position, an object is
            named after its kind (`model`, `optimizer`, `scheduler`, …), with a number from the second of a kind on. A
            restart must give the same names. A module's weights become `model.safetensors`.
        extra: a dict of plain values, tensors and arrays that is saved with the rest and updated in place on a resume.
        folder: where to save if Crucible does not say; `./checkpoints` by default.
        every_seconds: how often to save if Crucible does not say; by default what the measured cost of a save suggests.
        keep: how many checkpoints to keep in the folder, besides the best one. Crucible keeps its own number.

    Raises:
        ConfigError: an object without a state, or a folder that another process writes to.
        CheckpointError: the checkpoint does not verify, or does not fit these objects.
    """
    return Run(Objects(objects, named, extra), folder, every_seconds, keep)


class Run(Session):
    """A training between its start and its end; made by `resume_or_start`. Steps count from 1."""

    required = frozenset({OBJECTS, RNG, STATE})

    def __init__(self, objects: Objects, folder: str | Path | None, every_seconds: float | None, keep: int) -> None:
        self._objects = objects
        super().__init__(folder, every_seconds, keep)

    def steps(self, total: int) -> Iterator[int]:
        """The steps that are left of `total`: 1 to `total` on a fresh start. The last one is saved when it is done."""
        for step in range(self.step + 1, total + 1):
            yield step
            self.reached(step)
        if self.step:
            self.save(self.step)
        self.close()

    def _write(self, step: int, small: list[FilePlan]) -> int:
        return write_folder(self.folder, step, [*self._objects.plans(), *small])

    def _restore(self, folder: Path) -> None:
        self._objects.restore(folder)
