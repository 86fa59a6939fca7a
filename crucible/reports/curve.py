"""A curve small enough for a table's cell: as characters for the terminal, as a PNG for a page."""

from __future__ import annotations

import io
from collections.abc import Sequence

from crucible.jobs.job import Attempt, Job
from crucible.jobs.metrics import Metrics, Row

POINTS = 48
"""Of a small curve; more would not be seen."""
LARGEST = 1e300
"""Of a value that is drawn: sums and differences of such are finite."""
NAMES = ("train_loss", "val_loss")
"""What is drawn: the first of these that was reported often enough, else whatever else the workload reports."""
_BARS = "▁▂▃▄▅▆▇█"
_WIDTH, _HEIGHT, _FINER = 120, 26, 4
_LINE = (62, 124, 190)
"""Readable on white and on the dark background of the Prefect UI."""


class SmallCurve:
    """A job's loss over its steps from a few pieces of its metrics; kept, it reads each of them only once.

    A training of days has tens of thousands of pieces. Every 2^k-th is read, so that most of those chosen now are
    chosen again when there are more.
    """

    def __init__(self, job: Job) -> None:
        self._job = job
        self._metrics: dict[int, Metrics] = {}

    def read(self) -> list[tuple[float, float]]:
        """Steps and values, at most about `POINTS`; steps that a later attempt trained again count once."""
        rows: list[Row] = []
        for attempt in self._job.attempts():
            start = attempt.read_start()
            if start is not None:
                rows = [row for row in rows if row["step"] <= start.step]
                rows += self._some_of(attempt)
        return thinned(points_of(rows), POINTS)

    def _some_of(self, attempt: Attempt) -> list[Row]:
        metrics = self._metrics.setdefault(attempt.number, Metrics(self._job))
        return metrics.of_attempt(attempt, about=POINTS)


def points_of(rows: Sequence[Row]) -> list[tuple[float, float]]:
    """Steps and values of the loss that can be drawn; of the metric that was reported most where there is no loss."""
    counts: dict[str, int] = {}
    for row in rows:
        for name in row:
            counts[name] = counts.get(name, 0) + 1
    drawn = next((name for name in NAMES if counts.get(name, 0) > 1), None)
    if drawn is None:
        others = [n for n in counts if n not in ("step", "attempt", "time") and not n.startswith(_NOT_LEARNING)]
        drawn = max(others, key=lambda other: counts[other]) if others else None
    if drawn is None:
        return []
    return [(row["step"], row[drawn]) for row in rows if drawn in row and abs(row[drawn]) <= LARGEST]


_NOT_LEARNING = ("gpu_", "cpu_", "memory", "checkpoint_", "tokens_per_second", "learning_rate", "epoch", "max_iters")


def thinned(points: Sequence[tuple[float, float]], most: int) -> list[tuple[float, float]]:
    """At most `most` points, each the mean of its neighbours; the last one is the last that is known."""
    size = -(-len(points) // most)
    if size <= 1:
        return list(points)
    groups = [points[i : i + size] for i in range(0, len(points), size)]
    return [(group[-1][0], sum(value for _, value in group) / len(group)) for group in groups]


def sparkline(points: Sequence[tuple[float, float]], width: int = 16) -> str:
    """The curve as characters.

    >>> sparkline([(0, 4.0), (1, 3.0), (2, 2.2), (3, 2.0)])
    '█▅▁▁'
    """
    values = [value for _, value in thinned(points, width)]
    if not values:
        return ""
    low, high = min(values), max(values)
    spread = (high - low) or 1.0
    return "".join(_BARS[min(len(_BARS) - 1, int((value - low) / spread * len(_BARS)))] for value in values)


def bar(share: float, width: int = 10) -> str:
    """How much of something is done or used, as characters.

    >>> bar(0.42)
    '████░░░░░░'
    """
    full = round(min(1.0, max(0.0, share)) * width)
    return "█" * full + "░" * (width - full)


def small_curve(points: Sequence[tuple[float, float]]) -> bytes:
    """The curve as a PNG without background, about 500 bytes; no axes, it only shows the shape."""
    from PIL import Image, ImageDraw

    image = Image.new("RGBA", (_WIDTH * _FINER, _HEIGHT * _FINER), (*_LINE, 0))
    if len(points) > 1:
        margin = 2 * _FINER
        steps, values = [step for step, _ in points], [value for _, value in points]
        wide, high = (max(steps) - min(steps)) or 1.0, (max(values) - min(values)) or 1.0
        places = [
            (
                margin + (step - min(steps)) / wide * (image.width - 2 * margin),
                image.height - margin - (value - min(values)) / high * (image.height - 2 * margin),
            )
            for step, value in points
        ]
        ImageDraw.Draw(image).line(places, fill=(*_LINE, 255), width=round(1.6 * _FINER), joint="curve")
    alpha = image.getchannel("A").resize((_WIDTH, _HEIGHT), Image.Resampling.LANCZOS)
    # One colour in 16 degrees of transparency: a palette keeps it small.
    shades = alpha.point(lambda value: value >> 4)
    picture = Image.frombytes("P", shades.size, shades.tobytes())
    picture.putpalette(list(_LINE) * 16)
    buffer = io.BytesIO()
    picture.save(buffer, format="png", optimize=True, bits=4, transparency=bytes(17 * shade for shade in range(16)))
    return buffer.getvalue()
