"""Carries finished checkpoints to the store while training goes on.

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
from pathlib import Path

from crucible.agent.observer import Trouble
from crucible.agent.states import Committed, Fenced, Uploaded
from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.retention import retain
from crucible.contract import finished_folders, step_of
from crucible.errors import CheckpointError, FencedOut, StoreError
from crucible.jobs.job import Attempt

LOOK_SECONDS = 0.25


class Uploads:
    """The uploading thread of an attempt. It posts `Committed` and `Trouble`, at its end `Fenced` or `Uploaded`."""

    def __init__(
        self,
        attempt: Attempt,
        folder: Path,
        committed_step: int,
        keep_last: int,
        post: Callable[[Committed | Trouble | Fenced | Uploaded], None],
    ) -> None:
        """`folder`: where the workload saves; `committed_step`: what it resumed from, which is not carried again."""
        self._attempt, self._checkpoints = attempt, Checkpoints(attempt.job)
        self._folder, self._committed_step, self._keep_last, self._post = folder, committed_step, keep_last, post
        self._finishing = threading.Event()
        self._deadline = math.inf
        context = contextvars.copy_context()
        self._thread = threading.Thread(target=context.run, args=(self._run,), name="uploads", daemon=True)

    def start(self) -> None:
        self._thread.start()

    def finish(self, deadline: float) -> None:
        """Carry what is left and end; returns at once. A failing store is retried until `deadline`, in monotonic
        seconds, which a later call may change."""
        self._deadline = deadline
        self._finishing.set()

    def _run(self) -> None:
        failure: Exception | None = None  # why the newest checkpoint could not be committed
        while True:
            finishing = self._finishing.is_set()  # read first: what is finished after this gets another round
            folder = self._newest_to_carry()
            if folder is None:
                if finishing:
                    break
                self._finishing.wait(LOOK_SECONDS)
                continue
            try:
                self._carry(folder)
                failure = None
            except FencedOut as error:
                self._post(Fenced(error))
                return
            except Exception as error:  # noqa: BLE001 - whatever goes wrong, saving must not end unnoticed
                failure = error
                self._post(Trouble("saving", f"{folder.name} could not be committed: {error}"))
                shutil.rmtree(folder, ignore_errors=True)
                if finishing and not isinstance(error, CheckpointError):  # an older folder would meet the same
                    break
        self._post(Uploaded(failure))

    def _newest_to_carry(self) -> Path | None:
        folders = finished_folders(self._folder)
        newest = folders[-1] if folders and (step_of(folders[-1]) or 0) > self._committed_step else None
        for folder in folders:
            if folder != newest:
                shutil.rmtree(folder, ignore_errors=True)
        return newest

    def _carry(self, folder: Path) -> None:
        began = time.monotonic()
        checkpoint = self._checkpoints.commit(self._attempt, folder, pause=self._pause)
        self._committed_step = checkpoint.step
        self._post(Committed(checkpoint, time.monotonic() - began))
        if not self._finishing.is_set():
            try:
                retain(self._checkpoints, keep_last=self._keep_last)
            except StoreError as error:
                self._post(Trouble("retention", str(error)))

    def _pause(self, seconds: float) -> bool:
        """Wait before the next try; True once the machine's time is up."""
        last = self._committed_step
        self._post(Trouble("store", f"the store does not answer; trying again (last commit: step {last})"))
        self._finishing.wait(seconds) if not self._finishing.is_set() else time.sleep(min(seconds, 1.0))
        return time.monotonic() > self._deadline
