"""Carries finished checkpoints to the store while training goes on, and chooses how often to save.

One thread, one checkpoint at a time. If the workload finished several folders while one was on its way, the newest is
taken: the ones between would only cost bandwidth. While the store fails, the thread keeps trying and training goes on.
"""

from __future__ import annotations

import contextvars
import math
import shutil
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from crucible.checkpoints.commits import Checkpoint, Checkpoints
from crucible.contract import Control, finished_folders, step_of
from crucible.errors import CheckpointError, FencedOut, StoreError, StoreUnavailable
from crucible.intervals import FIRST_INTERVAL_SECONDS, IntervalPolicy, SaveCosts
from crucible.jobs.job import Attempt

LOOK_SECONDS = 0.25


@dataclass(frozen=True)
class SavePolicy(IntervalPolicy):
    """What decides how often to save and what to keep."""

    keep_last: int = 3


@dataclass
class SaveFigures(SaveCosts):
    """What saving has cost lately, the bytes of the newest checkpoint, and the interval in force."""

    bytes: int = 0
    interval_seconds: float = FIRST_INTERVAL_SECONDS

    def as_record(self) -> dict[str, float]:
        """As the heartbeat and the outcome keep them."""
        return {
            "interval_seconds": round(self.interval_seconds, 3),
            "stall_seconds": round(self.stall, 6),
            "durable_seconds": round(self.durable, 3),
            "bytes": float(self.bytes),
        }


class Saving:
    """The carrying thread of one attempt."""

    def __init__(
        self,
        attempt: Attempt,
        folder: Path,
        control_file: Path,
        policy: SavePolicy,
        *,
        on_commit: Callable[[Checkpoint, float], None],
        on_trouble: Callable[[str, str], None],
    ) -> None:
        self.folder, self.policy = folder, policy
        self.figures = SaveFigures()
        self.committed_step = 0
        self.fenced: FencedOut | None = None
        self.failure: Exception | None = None
        """Why the newest checkpoint could not be committed."""
        self._attempt, self._checkpoints = attempt, Checkpoints(attempt.job)
        self._control_file = control_file
        self._on_commit, self._on_trouble = on_commit, on_trouble
        self._choosing = threading.Lock()
        self._finishing = threading.Event()
        self._deadline = math.inf
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="saving", daemon=True)
        self._publish_interval(policy.first_seconds)

    def start(self, committed_step: int) -> None:
        self.committed_step = committed_step
        self._thread.start()

    def measured(self, stall_seconds: float, write_seconds: float) -> None:
        """Hear from the workload what its last save cost."""
        self.figures.stall_seconds.append(stall_seconds)
        self.figures.write_seconds.append(write_seconds)
        self._choose_interval()

    def finish(self, deadline: float, leave_at: float = math.inf) -> None:
        """Carry what is still to be carried; waits for it.

        A store that fails is tried again until `deadline`, a transfer under way is waited for until `leave_at` (both
        monotonic seconds).
        """
        self._deadline = deadline
        self._finishing.set()
        if self._thread.is_alive():
            self._thread.join(None if math.isinf(leave_at) else max(0.0, leave_at - time.monotonic()))
            if self._thread.is_alive():
                self.failure = StoreUnavailable("the machine's time was up before it had reached the store")

    def _run(self) -> None:
        while True:
            finishing = self._finishing.is_set()  # read first: what is finished after this gets another round
            folder = self._newest_to_carry()
            if folder is None:
                if finishing:
                    return
                self._finishing.wait(LOOK_SECONDS)
                continue
            try:
                self._carry(folder)
                self.failure = None
            except FencedOut as error:
                self.fenced = error
                return
            except CheckpointError as error:  # this one will never do; the next one may
                self._give_up(folder, error)
            except Exception as error:  # noqa: BLE001 - whatever goes wrong, saving must not end unnoticed
                self._give_up(folder, error)
                if finishing:
                    return

    def _give_up(self, folder: Path, error: Exception) -> None:
        self.failure = error
        self._on_trouble("saving", f"{folder.name} could not be committed: {error}")
        shutil.rmtree(folder, ignore_errors=True)

    def _newest_to_carry(self) -> Path | None:
        folders = finished_folders(self.folder)
        newest = folders[-1] if folders and (step_of(folders[-1]) or 0) > self.committed_step else None
        for folder in folders:
            if folder != newest:
                shutil.rmtree(folder, ignore_errors=True)
        return newest

    def _carry(self, folder: Path) -> None:
        began = time.monotonic()
        checkpoint = self._checkpoints.commit(self._attempt, folder, pause=self._pause)
        seconds = time.monotonic() - began
        self.committed_step = checkpoint.step
        self.figures.upload_seconds.append(seconds)
        self.figures.bytes = checkpoint.bytes
        self._choose_interval()
        self._on_commit(checkpoint, seconds)
        if time.monotonic() < self._deadline and not math.isfinite(self._deadline):
            try:
                self._checkpoints.retain(keep_last=self.policy.keep_last)
            except StoreError as error:
                self._on_trouble("retention", str(error))

    def _pause(self, seconds: float) -> bool:
        """Wait before the next try; True once the machine's time is up."""
        self._on_trouble("store", f"the store does not answer; trying again (last commit: step {self.committed_step})")
        self._finishing.wait(seconds) if not self._finishing.is_set() else time.sleep(min(seconds, 1.0))
        return time.monotonic() > self._deadline

    def _choose_interval(self) -> None:
        """By the newest figures: the interval and its reason are shown to people side by side."""
        with self._choosing:  # a commit and a measurement come from different threads
            wanted, durable = self.policy.wanted_seconds(self.figures), self.figures.durable
            interval = self.policy.interval_seconds(self.figures)
            if interval > wanted:
                self._on_trouble(
                    "saving",
                    f"a save takes {durable:.1f} s to reach the store, longer than the interval of {wanted:.1f} s; "
                    f"the interval grows to {interval:.1f} s",
                )
            self._publish_interval(interval)

    def _publish_interval(self, seconds: float) -> None:
        if abs(seconds - self.figures.interval_seconds) < 0.05 * self.figures.interval_seconds and (
            self._control_file.exists()
        ):
            return
        self.figures.interval_seconds = seconds
        try:
            Control(round(seconds, 3)).write(self._control_file)
        except OSError as error:
            self._on_trouble("scratch", f"the workload cannot be told how often to save: {error}")
