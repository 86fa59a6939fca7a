"""Where a workload saves and resumes, how often, and when it stops: by the contract, or by hand in a plain folder."""

from __future__ import annotations

import json
import math
import os
import signal
import sys
import threading
import time
from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import ExitStack
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, ClassVar, NoReturn

from crucible.contract import EXIT_SAVED, METRICS_FILE, Variable
from crucible.errors import CheckpointError
from crucible.workload.clock import CheckpointClock
from crucible.workload.environment import changes, script_environment
from crucible.workload.folders import RNG, STATE, FilePlan, newest_sound, prune
from crucible.workload.lock import lock_folder
from crucible.workload.metrics import Metrics
from crucible.workload.processes import ProcessGroup
from crucible.workload.rng import capture_rng, restore_rng
from crucible.workload.stop import StopRequest, stop_at_step

__all__ = ["DEFAULT_FOLDER", "Session"]

DEFAULT_FOLDER = "checkpoints"
"""Where a script that was not started by Crucible saves, relative to its working directory."""

_SCHEMA_VERSION = 1
_BEST_SAVE_SHARE = 10.0
"""A checkpoint that is the best so far is saved at once, as long as that takes at most a tenth of the time."""


class Session(ABC):
    """One training in this process. What a checkpoint holds is up to the class that extends it."""

    required: ClassVar[frozenset[str]] = frozenset({STATE, RNG})
    """The files that a checkpoint of this kind has."""

    def __init__(self, folder: str | Path | None, every_seconds: float | None, keep: int) -> None:
        given = os.environ.get(Variable.CHECKPOINT_DIR)
        self.folder = Path(given or folder or DEFAULT_FOLDER).absolute()
        """Where checkpoints are saved."""
        self.step = 0
        """The last step that is done: at first that of the checkpoint it resumed from, 0 on a fresh start."""
        self.resumed_from: Path | None = None
        """The checkpoint that the objects were restored from."""
        self.best: dict[str, float] | None = None
        """`step` and `val_loss` of the best evaluation so far."""
        self._processes = ProcessGroup.current()
        self._keep = None if given else keep
        self._stop_at_step = stop_at_step()
        self._environment = script_environment(self._processes.count)
        self._clock = CheckpointClock(every_seconds, self._print)
        self._resources = ExitStack()
        if self._processes.first:
            self._resources.enter_context(lock_folder(self.folder, self._print))
        self._metrics = self._open_metrics()
        self._saved_step: int | None = None
        self._save_seconds = 0.0
        self._known: dict[str, float] = {}
        try:
            self._resume(os.environ.get(Variable.RESUME_FROM) if given else None, bool(given))
        except BaseException:
            self._resources.close()
            raise
        self._stop: StopRequest | None = None
        self.listen()
        if self._stop_at_step is not None and self._saved_step is not None and self.step >= self._stop_at_step:
            self.exit()

    def log(self, step: int, **metrics: Any) -> None:
        """Write metrics of a step: numbers or one-element tensors. `loss` is written as `train_loss`.

        Reading a tensor waits for the GPU: log every tenth step if steps are short.
        """
        if self._metrics is None:
            return
        figures = {("train_loss" if name == "loss" else name): float(value) for name, value in metrics.items()}
        self._metrics.write(step=step, **figures)

    def maybe_save(self, step: int, **metrics: Any) -> bool:
        """Call it when step `step` is done. Saves if it is time, or if asked to stop, and then exits with 75.

        `val_loss` among the metrics decides which checkpoint is the best one; such a step is saved at once. The metrics
        are also logged. Returns whether it saved. Under torch.distributed, every process must call it.
        """
        self.reached(step)
        best = self.note(step, metrics)
        stopping, due = self.decide(best)
        if stopping or due:
            self._save(step, must=stopping)
        if stopping:
            self.exit()
        return due

    def save(self, step: int, **metrics: Any) -> None:
        """Save now, whatever the time; for the end of a training that does not use `steps`.

        Under torch.distributed, every process must call it. Raises CheckpointError if it cannot be saved.
        """
        self.reached(step)
        self.note(step, metrics)
        self._save(step, must=True)

    def exit(self) -> NoReturn:
        """Leave with 75, once everything is saved."""
        asked = f"asked to stop at step {self._stop_at_step}" if self._stop_at_step is not None else "asked to stop"
        self._print(f"stopped at step {self.step}, which is saved: {self._stop.reason() if self._stop else asked}")
        self.close()
        sys.exit(EXIT_SAVED)

    def restore_generators(self) -> None:
        """Undo every random draw since the checkpoint that it resumed from, if it did."""
        if self.resumed_from is None:
            return
        ranks = json.loads((self.resumed_from / RNG).read_text(encoding="utf-8"))["ranks"]
        if self._processes.rank < len(ranks):
            restore_rng(ranks[self._processes.rank])

    def is_not_exact(self, because: str) -> None:
        """Say in every checkpoint from now on, and so in the job's report, that a resumed run has other bits."""
        if self._environment.get("exact") is None:
            self._print(f"a resumed run will not be exact: {because}")
            self._environment |= {"exact": False, "not_exact_because": because}

    def close(self) -> None:
        """The training is over: SIGTERM ends the process again, and others may use the folder."""
        if self._stop is not None:
            self._stop.close()
        self._resources.close()

    def listen(self) -> None:
        """Take SIGTERM as a request to stop, from now on."""
        if self._stop or threading.current_thread() is not threading.main_thread():
            return
        if self._stop is not None:
            self._stop.close()
        self._stop = StopRequest((signal.SIGTERM,), lambda: True)

    def reached(self, step: int) -> None:
        """Step `step` is done."""
        if step != self.step:
            self.step, self._known = step, {}

    def decide(self, best: bool = False) -> tuple[bool, bool]:
        """Whether to save and stop after this step, and whether to save: the same in every process."""
        at_the_end = self._stop_at_step is not None and self.step >= self._stop_at_step
        stopping, due = self._processes.any(bool(self._stop) or at_the_end, self._due(best))
        return stopping, due

    def note(self, step: int, metrics: Mapping[str, Any]) -> bool:
        """Log metrics of a step; returns whether it is the best so far."""
        figures = {name: float(value) for name, value in metrics.items()}
        if figures:
            self.log(step, **figures)
        self._known |= figures
        loss = figures.get("val_loss", math.nan)
        if math.isfinite(loss) and (self.best is None or loss < self.best["val_loss"]):
            self.best = {"step": step, "val_loss": loss}
            return True
        return False

    def _due(self, best: bool) -> bool:
        if not self._processes.first or self._saved_step == self.step:
            return False
        return self._clock.due() or (best and self._clock.elapsed_seconds >= _BEST_SAVE_SHARE * self._save_seconds)

    def _save(self, step: int, must: bool) -> None:
        """Save, in all processes together. Raises CheckpointError if that fails and `must`, or there is none yet."""
        if not self._processes.any(self._saved_step != step)[0]:  # only the first one knows of a save that failed
            return
        self._clock.saved()
        began = time.perf_counter()
        generators = self._processes.gather(capture_rng())
        if self._processes.first:
            try:
                size = self._write(step, self._small_files(step, generators))
            except CheckpointError as error:
                # A full disk may have room again later; but without any checkpoint, going on would be a gamble.
                if self._saved_step is None or self._stop or must:
                    raise
                self._print(f"{error}; going on, the last checkpoint is that of step {self._saved_step}")
                return
            self._report(step, time.perf_counter() - began, size)
        self._saved_step = step

    def _report(self, step: int, seconds: float, size: int) -> None:
        self._save_seconds = seconds
        self._clock.measured(seconds, seconds)
        if self._metrics is not None:
            self._metrics.write(
                step=step,
                checkpoint_stall_seconds=seconds,
                checkpoint_write_seconds=seconds,
                checkpoint_bytes=size,
            )
        if self._keep is not None:
            prune(self.folder, self._keep, int(self.best["step"]) if self.best else None, step)

    def _small_files(self, step: int, generators: list[dict[str, Any]]) -> list[FilePlan]:
        state = {
            "schema_version": _SCHEMA_VERSION,
            "step": step,
            **self._known,
            "best": self.best,
            "environment": self._environment,
            "saved_at": datetime.now(UTC).isoformat(timespec="milliseconds"),
        }
        rng = {"schema_version": _SCHEMA_VERSION, "ranks": generators}
        return [
            FilePlan(RNG, (json.dumps(rng) + "\n").encode()),
            FilePlan(STATE, (json.dumps(state, indent=1) + "\n").encode()),
        ]

    def _resume(self, given: str | None, by_crucible: bool) -> None:
        if by_crucible:
            source = Path(given) if given else None  # verified when it was downloaded
        else:
            found = newest_sound(self.folder, self._print, self.required) if self._processes.first else None
            source = self._processes.gather(found)[0]
        if source is None:
            return
        self._restore(source)
        state = json.loads((source / STATE).read_text(encoding="utf-8"))
        self.step = self._saved_step = int(state["step"])
        self.best, self.resumed_from = state.get("best"), source
        self.restore_generators()
        self._print(f"resumed at step {self.step} from {source}")
        if changed := changes(state["environment"], self._environment):
            self._print(f"exact in state but not in bits, since this is another environment: {', '.join(changed)}")

    def _open_metrics(self) -> Metrics | None:
        if not self._processes.first:
            return None
        given = os.environ.get(Variable.METRICS_FILE)
        return Metrics(Path(given) if given else self.folder / METRICS_FILE, self._print)

    def _print(self, line: str) -> None:
        if self._processes.first:
            print(line, file=sys.stderr, flush=True)

    @abstractmethod
    def _write(self, step: int, small: list[FilePlan]) -> int:
        """Write the checkpoint folder, `small` files included; returns its bytes."""

    @abstractmethod
    def _restore(self, folder: Path) -> None:
        """Load the state of a checkpoint."""
