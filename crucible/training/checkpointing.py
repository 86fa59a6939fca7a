"""When the step loop saves, and what becomes of a save: reported, pruned, or tried again later."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from crucible.errors import CheckpointError
from crucible.training.losses import Losses
from crucible.training.saver import Saver, SaveReport
from crucible.workload.clock import CheckpointClock
from crucible.workload.folders import prune
from crucible.workload.metrics import Metrics

__all__ = ["Checkpointer"]


@dataclass
class Checkpointer:
    """Saves between steps, for the process of a group that writes checkpoints."""

    saver: Saver
    clock: CheckpointClock
    metrics: Metrics
    losses: Losses
    """Whose best step is saved at once and never pruned."""
    log: Callable[[str], None]
    keep: int | None
    """How many checkpoints to leave in the folder; None: all of them."""
    first_step: int
    """The step of the checkpoint that this run began with; 0: none."""

    def due(self, step: int) -> bool:
        """Whether to save now: this step is the best so far, or it is time and nothing is being written."""
        self.collect()
        return self.losses.best_step == step or (not self.saver.busy and self.clock.due())

    def save(self, step: int, small: Mapping[str, bytes], began: float, *, wait: bool = False) -> None:
        """Begin to save the state of this step, or with `wait` return only when it is durable.

        `small`: the files beside the tensors; `began`: `time.perf_counter` when the step loop stopped for this. Raises
        CheckpointError with `wait`, or if no checkpoint of this run exists yet.
        """
        self.clock.saved()
        self.collect(wait=True)
        if self.saver.saved_step == step:
            return
        if wait:
            self._report(self.saver.save_now(step, small, began))
            return
        try:
            report = self.saver.save(step, small, began)
        except CheckpointError as error:
            self._failed(error)
            return
        if report is not None:
            self._report(report)

    def collect(self, *, wait: bool = False) -> None:
        """Report the save in flight, if it has ended."""
        if not self.saver.busy:
            return
        try:
            report = self.saver.poll(wait=wait)
        except CheckpointError as error:
            self._failed(error)
            return
        if report is not None:
            self._report(report)

    def _report(self, report: SaveReport) -> None:
        self.clock.measured(report.stall_seconds, report.write_seconds)
        self.metrics.write(
            step=report.step,
            checkpoint_stall_seconds=report.stall_seconds,
            checkpoint_write_seconds=report.write_seconds,
            checkpoint_bytes=report.bytes,
        )
        if self.keep is not None:
            prune(self.saver.parent, self.keep, self.losses.best_step, report.step)

    def _failed(self, error: CheckpointError) -> None:
        """A full disk may have room again later; but without any checkpoint, going on would be a gamble."""
        safe = self.saver.saved_step or self.first_step
        if not safe:
            raise error
        self.log(f"{error}; training continues and tries again, the last checkpoint is that of step {safe}")
