"""Which step a checkpoint file is of: by what was printed, by its name, by what is in it, else by the time."""

from __future__ import annotations

import json
import re
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

from crucible.script_config import CheckpointFiles

PRINTED_LATE_SECONDS = 0.05
"""A line printed just before a save may be read a little after the file was written."""
READ_SECONDS = 120.0
"""For the process that looks into a file: it imports torch."""
HURRIED_SECONDS = 10.0
"""The same once the machine is about to go."""
READ_FAILURES = 2
"""So many files that tell no step, and no more are looked into."""
_STEP_IN_NAME = re.compile(r"(?:step|iter|iteration|checkpoint|ckpt)[-_=]?0*(\d+)", re.IGNORECASE)
_EPOCH_IN_NAME = re.compile(r"epoch[-_=]?0*(\d+)", re.IGNORECASE)
_TRAINER_STATE = "trainer_state.json"


class StepSource(StrEnum):
    """How a checkpoint's step was found."""

    PRINTED = "printed"
    NAME = "name"
    FILE = "file"
    TIME = "time"
    """Seconds since the first attempt began, as nothing says the step."""


@dataclass(frozen=True)
class FoundStep:
    """A step and where it was found."""

    step: int
    source: StepSource


class Steps:
    """Finds the step of each save of one attempt, and sees to it that steps grow."""

    def __init__(self, files: CheckpointFiles, restored: FoundStep | None, log: Callable[[str], None]) -> None:
        self._pattern = re.compile(files.step_from) if files.step_from else None
        self._named = any(letter in files.path for letter in "*?[")
        self._restored, self._log = restored, log
        self._last: int | None = None
        self._began = time.monotonic()
        self._printed: deque[tuple[float, int]] = deque(maxlen=1000)
        self._lock = threading.Lock()
        self._unreadable = 0
        self.hurried: Callable[[], bool] = lambda: False
        """Whether there is no time for long looks into files."""

    @property
    def newest(self) -> int:
        """The highest step that is saved; 0 before the first."""
        return self._last if self._last is not None else self._restored.step if self._restored else 0

    def handle_line(self, line: str) -> None:
        """Called for every printed line, from the thread that reads them."""
        if self._pattern and (match := self._pattern.search(line)):
            with self._lock, suppress(ValueError, OverflowError):  # a pattern may match what is no number
                self._printed.append((time.time(), int(float(match[1]))))

    def printed_step(self) -> int | None:
        """The newest step that was printed."""
        with self._lock:
            return self._printed[-1][1] if self._printed else None

    def step_of(self, name: str, saved: Path, changed_at: float) -> FoundStep | None:
        """The step of a save: `saved` is its copy, `name` its path in the working directory, `changed_at` when the
        script wrote it (Unix seconds). None when the script has only saved again what it resumed from."""
        found = self._find(name, saved, changed_at)
        if self._last is not None:
            step = max(found.step, self._last + 1)  # the same step saved twice is two saves
        elif self._restored is None or found.source is not self._restored.source:
            step = max(found.step, self.newest + 1)
        elif found.step > self._restored.step:
            step = found.step
        else:
            self._log(
                f"{name} is of step {found.step}, no further than the step {self._restored.step} that the script "
                f"resumed from"
            )
            return None
        self._last = step
        return FoundStep(step, found.source)

    def _find(self, name: str, saved: Path, changed_at: float) -> FoundStep:
        if (step := self._printed_before(changed_at)) is not None:
            return FoundStep(step, StepSource.PRINTED)
        if (step := _trainer_state(saved)) is not None:
            return FoundStep(step, StepSource.FILE)
        if self._named and (step := _step_in(name)) is not None:
            return FoundStep(step, StepSource.NAME)
        if (step := self._read(saved)) is not None:
            return FoundStep(step, StepSource.FILE)
        before = self._restored.step if self._restored else 0
        return FoundStep(before + round(time.monotonic() - self._began), StepSource.TIME)

    def _printed_before(self, changed_at: float) -> int | None:
        with self._lock:
            before = [step for at, step in self._printed if at <= changed_at + PRINTED_LATE_SECONDS]
            return before[-1] if before else self._printed[-1][1] if self._printed else None

    def _read(self, saved: Path) -> int | None:
        if not saved.is_file() or self._unreadable >= READ_FAILURES:
            return None
        command = [sys.executable, "-P", "-m", "crucible.adapter.read_step", str(saved)]
        began = time.monotonic()
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as reader:
            while reader.poll() is None:
                if time.monotonic() > began + (HURRIED_SECONDS if self.hurried() else READ_SECONDS):
                    reader.kill()
                time.sleep(0.05)
            printed = reader.stdout.read().strip() if reader.stdout else ""
        if reader.returncode == 0 and printed.isdigit():
            return int(printed)
        self._unreadable += 1
        return None


def _step_in(name: str) -> int | None:
    """The step in a path such as out/checkpoint-500 or epoch=2-step=1500.ckpt."""
    for pattern in (_STEP_IN_NAME, _EPOCH_IN_NAME):
        if found := pattern.findall(name):
            return int(found[-1])
    numbers = re.findall(r"\d+", Path(name).stem)
    return int(numbers[-1]) if numbers else None


def _trainer_state(saved: Path) -> int | None:
    """`global_step` of a folder that Hugging Face's Trainer wrote, or of the newest such folder in it."""
    if not saved.is_dir():
        return None
    steps = []
    for path in (saved / _TRAINER_STATE, *saved.glob(f"checkpoint-*/{_TRAINER_STATE}")):
        try:
            steps.append(int(json.loads(path.read_text(encoding="utf-8"))["global_step"]))
        except (OSError, ValueError, LookupError, TypeError):
            continue
    return max(steps, default=None)
