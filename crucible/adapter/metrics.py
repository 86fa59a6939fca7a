"""Metrics of a script that knows nothing of the metrics file: from what it prints, or from files that it writes."""

from __future__ import annotations

import csv
import io
import json
import math
import re
import threading
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Protocol

from crucible.adapter.tensorboard import EventFiles
from crucible.contract import metrics_line
from crucible.script_config import MetricsSource

__all__ = [
    "MetricsWriter",
    "Point",
    "PrintedMetrics",
    "WrittenMetrics",
    "printed_metrics",
    "read_printed",
    "written_metrics",
]

Point = tuple[int, dict[str, float]]
"""A step and what was measured there."""

NANOGPT_PATTERN = (
    r"(?:iter (?P<step>\d+): loss (?P<train_loss>[-+.\deE]+|nan|inf))|"
    r"(?:step (?P<step_>\d+): train loss [-+.\deE]+, val loss (?P<val_loss>[-+.\deE]+|nan|inf))"
)
"""What nanoGPT's own `train.py` prints. A group whose name ends in `_` counts under the name before it."""
_NAMES = {
    "loss": "train_loss",
    "train/loss": "train_loss",
    "train_loss_step": "train_loss",
    "loss/train": "train_loss",
    "eval_loss": "val_loss",
    "eval/loss": "val_loss",
    "valid_loss": "val_loss",
    "validation_loss": "val_loss",
    "val/loss": "val_loss",
    "loss/val": "val_loss",
    "lr": "learning_rate",
    "train/learning_rate": "learning_rate",
}
"""The names under which reports and sweeps look for what frameworks call otherwise."""
_STEP_NAMES = ("step", "_step", "global_step", "iter", "iteration", "iter_num")
_NOT_METRICS = {*_STEP_NAMES, "time", "_timestamp", "_runtime"}
_NUMBER = r"[-+]?(?:\d[\d.]*(?:[eE][-+]?\d+)?|nan|inf)"
_PAIR = re.compile(rf"'([\w./-]+)': '?({_NUMBER})'?(?=[,}}])")
_BAR = re.compile(r"\|\s*(\d+)/(\d+) \[")
_EPOCH_BAR = re.compile(r"^Epoch (\d+)[^|]*\|[^|]*\|\s*(\d+)/(\d+) \[(.*)")
_RICH_BAR = re.compile(r"^Epoch (\d+)/-?\d+\s+\S*\s*(\d+)/(\d+) [\d:]+ • [-\d:]+ +[\d.]+it/s(.*)")
_NAMED = re.compile(rf"([\w./-]+): ({_NUMBER})(?=\s|$)")
_ASSIGNED = re.compile(rf"([\w./-]+)=({_NUMBER})(?=[,\]\s]|$)")
_LOOK_SECONDS = 1.0
"""Between two looks at files."""


class PrintedMetrics(Protocol):
    """Finds metrics in printed lines, in order."""

    def read(self, line: str) -> Point | None:
        """What this line reports, if anything."""


class WrittenMetrics(Protocol):
    """Finds metrics in files that the script writes."""

    def read_new(self, last: bool = False) -> Iterable[Point]:
        """What was added since the last call; with `last`, nothing will be added any more."""


class MetricsWriter:
    """Appends to the agent's metrics file; from any thread."""

    def __init__(self, path: Path) -> None:
        self._path, self._lock = path, threading.Lock()
        self.newest_step: int | None = None
        self._val_loss: float | None = None

    def write(self, step: int, values: Mapping[str, float]) -> None:
        """Raises OSError."""
        with self._lock, self._path.open("a", encoding="utf-8") as file:
            file.write(metrics_line(step, time.time(), values))
            if any(not name.startswith("checkpoint_") for name in values):
                self.newest_step = step
                self._val_loss = values.get("val_loss", self._val_loss)

    def take_val_loss(self) -> dict[str, float]:
        """The validation loss reported since the last call, for the checkpoint made after it."""
        found, self._val_loss = self._val_loss, None
        return {} if found is None or not math.isfinite(found) else {"val_loss": found}


def printed_metrics(source: MetricsSource, total_steps: int | None = None) -> PrintedMetrics | None:
    """What finds the metrics in printed lines; None if the source is something else."""
    match source.format:
        case "nanogpt":
            return _Pattern(NANOGPT_PATTERN)
        case "pattern":
            return _Pattern(source.pattern)
        case "huggingface":
            return _HuggingFace(total_steps)
        case "lightning":
            return _Lightning()
    return None


def written_metrics(source: MetricsSource, cwd: Path) -> WrittenMetrics | None:
    """What finds the metrics in files below `cwd`; None if the source is something else.

    What is in them by now came with the code, from another run, and is passed over.
    """
    match source.format:
        case "jsonl":
            return _JsonLines(cwd, source.path)
        case "tensorboard":
            return _TensorBoard(cwd, source.path)
        case "lightning":
            return _Csv(cwd, source.path or "lightning_logs/version_*/metrics.csv")
    return None


def read_printed(source: MetricsSource, lines: Iterable[str], total_steps: int | None = None) -> Iterator[Point]:
    """What a source finds in a sample of printed lines, to try a pattern out."""
    reader = printed_metrics(source, total_steps)
    for line in lines:
        if reader and (point := reader.read(line)):
            yield point


class _Pattern:
    """Named groups of a regular expression: `step`, and every other one a metric."""

    def __init__(self, pattern: str) -> None:
        self._pattern = re.compile(pattern)

    def read(self, line: str) -> Point | None:
        match = self._pattern.search(line)
        if not match:
            return None
        groups = {name.rstrip("_"): text for name, text in match.groupdict().items() if text is not None}
        return _point(groups, groups.pop("step", None))


class _HuggingFace:
    """`{'loss': 2.1, 'learning_rate': 5e-05, 'epoch': 0.1}` as Trainer prints it; the step is its progress bar's.

    Without a progress bar the reports are counted instead.
    """

    def __init__(self, total_steps: int | None) -> None:
        self._total = total_steps
        self._step = self._count = 0

    def read(self, line: str) -> Point | None:
        if bar := _BAR.search(line):
            done, total = int(bar[1]), int(bar[2])
            head = line[: bar.start()].split("|", 1)[0].strip()
            # Other bars have a title ("Map: 10%"), or another length: evaluation's.
            if head.endswith("%") and head[:-1].strip().isdigit() and self._total in (None, total):
                self._total, self._step = total, done
        if "{'" not in line:
            return None
        values = dict(_PAIR.findall(line[line.index("{'") : line.index("{'") + 4000]))
        if not values or "train_runtime" in values:  # the summary at the end has averages
            return None
        self._count += 1
        return _point(values, str(self._step or self._count))


class _Lightning:
    """`Epoch 0: 10%|█ | 50/500 [00:05<00:45, 10.0it/s, v_num=0, train_loss=2.31]`, tqdm's bar, or rich's:
    `Epoch 0/9  ━━━━━━ 50/500 0:00:05 • 0:00:45 10.00it/s v_num: 0.000 train_loss: 2.310`.
    """

    def read(self, line: str) -> Point | None:
        for bar, pair in ((_EPOCH_BAR, _ASSIGNED), (_RICH_BAR, _NAMED)):
            if match := bar.search(line):
                epoch, done, total = int(match[1]), int(match[2]), int(match[3])
                values = {name: text for name, text in pair.findall(match[4]) if name != "v_num"}
                return _point(values, str(epoch * total + done)) if values else None
        return None


class _JsonLines:
    """Files of JSON lines that grow."""

    def __init__(self, cwd: Path, pattern: str) -> None:
        self._cwd, self._pattern = cwd, pattern
        self._read: dict[Path, int] = {}
        self._before: dict[Path, tuple[tuple[int, int], bytes]] = {}
        """State and last bytes of each file that was there at the start, until it changes."""
        self._count = 0
        for path in self._cwd.glob(self._pattern):
            with suppress(OSError):
                self._before[path] = _state(path), _last_bytes(path, path.stat().st_size)

    def read_new(self, last: bool = False) -> Iterator[Point]:
        for path in sorted(self._cwd.glob(self._pattern)):
            for line in self._whole_lines(path, last):
                with suppress(ValueError, RecursionError):
                    values = json.loads(line)
                    if not isinstance(values, dict):
                        continue
                    self._count += 1
                    step = next((values[name] for name in _STEP_NAMES if name in values), self._count)
                    if point := _point(values, step):
                        yield point

    def _whole_lines(self, path: Path, last: bool) -> list[bytes]:
        with suppress(OSError), path.open("rb") as file:
            if (before := self._before.get(path)) is not None:
                if _state(path) == before[0]:
                    return []
                del self._before[path]
                size, now = before[0][0], path.stat().st_size
                if now > size and _last_bytes(path, size) == before[1]:  # the script adds to it
                    self._read[path] = size
            file.seek(self._read.get(path, 0))
            data = file.read(-1 if last else 8_000_000)
            whole = data if last else data[: data.rfind(b"\n") + 1]
            self._read[path] = self._read.get(path, 0) + len(whole)
            return whole.splitlines()
        return []


class _Csv:
    """Lightning's CSVLogger, which rewrites its file when a column comes in: rows are counted."""

    def __init__(self, cwd: Path, pattern: str) -> None:
        self._cwd, self._pattern = cwd, pattern
        self._rows: dict[Path, tuple[int, int]] = {}
        """Rows that were read, and the file's time then."""
        for path in self._cwd.glob(self._pattern):
            with suppress(OSError):
                self._rows[path] = 0, path.stat().st_mtime_ns

    def read_new(self, last: bool = False) -> Iterator[Point]:
        for path in sorted(self._cwd.glob(self._pattern)):
            rows, seen = self._rows.get(path, (0, 0))
            with suppress(OSError, csv.Error):
                changed = path.stat().st_mtime_ns
                if changed == seen and not last:
                    continue
                data = path.read_bytes()
                whole = data[: data.rfind(b"\n") + 1]  # its last line may be half written
                text = whole.decode("utf-8-sig", errors="replace")
                found = list(csv.DictReader(io.StringIO(text, newline="")))
                self._rows[path] = len(found), changed
                for row in found[rows:]:
                    step = next((row[name] for name in _STEP_NAMES if row.get(name)), None)
                    if point := _point({name: text for name, text in row.items() if name}, step):
                        yield point


class _TensorBoard:
    """Scalars in event files, those of one step together."""

    def __init__(self, cwd: Path, path: str) -> None:
        self._files = EventFiles(cwd, path)
        self._files.skip()

    def read_new(self, last: bool = False) -> Iterator[Point]:
        together: dict[int, dict[str, float]] = {}
        for step, name, value in self._files.read_new():
            together.setdefault(step, {})[name] = value
        for step, values in sorted(together.items()):
            if point := _point(values, step):
                yield point


class FileLooks:
    """Looks at written metrics at a bounded rate."""

    def __init__(self, source: WrittenMetrics | None) -> None:
        self._source, self._next = source, 0.0

    def look(self, last: bool = False) -> Iterable[Point]:
        """What is new; nothing if the last look was just now."""
        if self._source is None or (time.monotonic() < self._next and not last):
            return ()
        self._next = time.monotonic() + _LOOK_SECONDS
        return self._source.read_new(last)


def _point(values: Mapping[str, object], step: object) -> Point | None:
    """Numbers under the names that Crucible uses; None without a step or without a number."""
    number = _number(step)
    if number is None or not math.isfinite(number) or number < 0:
        return None
    found = {
        _NAMES.get(name, name): value
        for name, text in values.items()
        if name not in _NOT_METRICS and (value := _number(text)) is not None
    }
    return (int(number), found) if found else None


def _state(path: Path) -> tuple[int, int]:
    status = path.stat()
    return status.st_size, status.st_mtime_ns


def _last_bytes(path: Path, end: int) -> bytes:
    """Up to 4 kB of the file before the offset `end`."""
    with path.open("rb") as file:
        file.seek(max(0, end - 4096))
        return file.read(min(end, 4096))


def _number(value: object) -> float | None:
    if isinstance(value, bool) or not isinstance(value, str | int | float):
        return None
    try:
        return float(value)
    except (ValueError, OverflowError):
        return None
