"""The curves of a job as small PNGs, drawn so that they can be read on a white page and on a dark one."""

from __future__ import annotations

import base64
import io
import math
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from crucible.jobs.metrics import Row
from crucible.reports.curve import LARGEST, thinned

MOST_POINTS = 300
"""Of the training loss; of a longer history each is the mean of its neighbours, which shows more than noise would."""

INK, GRID = "#7d8590", "#7d859040"
"""Text and lines that are neither black nor white: the page behind the picture may be light or dark."""
TRAINING, VALIDATION, MACHINE = "#5b97d6", "#d9552f", "#4d9c5a"

drawing = threading.Lock()  # matplotlib's font cache and text engine are not made for threads


def loss_curve(rows: Sequence[Row], attempt_starts: Mapping[int, int] | None = None) -> bytes:
    """A PNG of training and validation loss over steps, with a line where each later attempt began.

    `rows` as in `Metrics.rows`; `attempt_starts` maps attempt numbers to the steps they resumed from.
    """
    with drawing:
        figure = blank_figure(6.4, 2.88)
        axes = figure.add_subplot()
        train, val = thinned(points(rows, "train_loss"), MOST_POINTS), points(rows, "val_loss")
        if train:
            axes.plot(*zip(*train, strict=True), color=TRAINING, linewidth=1.0, label="training")
        if val:
            step, loss = val[-1]
            axes.plot(
                *zip(*val, strict=True), color=VALIDATION, linewidth=1.8, marker="o", markersize=3.5, label="validation"
            )
            axes.annotate(
                f"{loss:.3f}", (step, loss), textcoords="offset points", xytext=(-2, 7), ha="right", color=VALIDATION
            )
        if train or val:
            # Above the axes: inside them, the labels of attempts would run through it.
            axes.legend(frameon=False, loc="lower right", bbox_to_anchor=(1.0, 0.98), ncols=2, labelcolor=INK)
        else:
            axes.text(0.5, 0.5, "no losses reported yet", ha="center", transform=axes.transAxes, color=INK)
        _mark_attempts(axes, attempt_starts or {})
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats per token)")
        plain_axes(axes)
        return png(figure)


@dataclass(frozen=True)
class Panel:
    """One small picture beside others: its title, and the metrics in it, each with its colour and label."""

    title: str
    lines: Sequence[tuple[str, str, str]]
    top: float | None = None
    """Where the axis ends; None: a little above the highest value."""

    def is_in(self, rows: Sequence[Row]) -> bool:
        """Whether there is anything to draw."""
        return any(sum(name in row for row in rows) > 1 for name, _, _ in self.lines)


PANELS = (
    Panel("learning rate", [("learning_rate", TRAINING, "")]),
    Panel("tokens per second", [("tokens_per_second", TRAINING, "")]),
    Panel("busy (%)", [("gpu_utilisation_percent", MACHINE, "GPU"), ("cpu_utilisation_percent", INK, "CPU")], 105),
    Panel("memory (GiB)", [("gpu_memory_gib", MACHINE, "GPU"), ("memory_gib", INK, "machine")]),
)


def panels(rows: Sequence[Row]) -> bytes | None:
    """A PNG of what was reported besides the losses, one small picture each; None if there is nothing."""
    shown = [panel for panel in PANELS if panel.is_in(rows)]
    if not shown:
        return None
    with drawing:
        figure = blank_figure(6.4, 1.4 * (-(-len(shown) // 2)))
        for place, panel in enumerate(shown, start=1):
            axes = figure.add_subplot(-(-len(shown) // 2), min(2, len(shown)), place)
            drawn = 0
            for name, colour, label in panel.lines:
                if drawn_points := thinned(points(rows, name), MOST_POINTS // 2):
                    axes.plot(*zip(*drawn_points, strict=True), color=colour, linewidth=1.2, label=label)
                    drawn += bool(label)
            axes.set_ylim(0, panel.top or 1.1 * axes.get_ylim()[1])
            axes.set_title(panel.title, fontsize=9, color=INK, loc="left")
            if drawn:
                axes.legend(frameon=False, loc="lower right", fontsize=8, labelcolor=INK)
            axes.ticklabel_format(axis="y", scilimits=(-3, 6))
            axes.tick_params(labelsize=8)
            plain_axes(axes)
        return png(figure)


def blank_figure(width: float, height: float) -> Any:
    """A figure of so many inches at 100 pixels each, without a background; small enough that its text can be read on a
    telephone."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width, height), dpi=100, layout="constrained", facecolor="none")
    FigureCanvasAgg(figure)
    return figure


def plain_axes(axes: Any) -> None:
    """Two axes and horizontal lines, in colours for any background."""
    axes.set_facecolor("none")
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(INK)
    axes.grid(axis="y", color=GRID, linewidth=0.7)
    axes.tick_params(colors=INK)
    axes.xaxis.label.set_color(INK)
    axes.yaxis.label.set_color(INK)
    axes.yaxis.get_offset_text().set_color(INK)


def data_uri(png: bytes) -> str:
    """The picture as an address that carries it: markdown with it needs no other file."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def points(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    """Steps and values of a metric; a gap where a value is too large to be drawn."""
    return [(row["step"], row[name] if abs(row[name]) <= LARGEST else math.nan) for row in rows if name in row]


def _mark_attempts(axes: Any, starts: Mapping[int, int]) -> None:
    """A dashed line for each later attempt; those that began at the same step share one."""
    numbers: dict[int, list[int]] = {}
    for number, step in sorted(starts.items()):
        if number > 1:
            numbers.setdefault(step, []).append(number)
    for step, together in numbers.items():
        axes.axvline(step, color=INK, linewidth=0.9, linestyle="--")
        axes.annotate(
            f"attempt {_numbers(together)}",
            (step, 1.0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            xytext=(3, -4),
            va="top",
            fontsize=8,
            color=INK,
            rotation=90,
        )


def _numbers(together: Sequence[int]) -> str:
    """As many as have room beside the axes."""
    shown = together if len(together) <= 6 else [*together[:3], "…", together[-1]]
    return ", ".join(map(str, shown))


def png(figure: Any) -> bytes:
    """The figure as PNG. A palette of 128 colours takes a third of the size and looks the same."""
    from PIL import Image

    canvas = figure.canvas
    canvas.draw()
    full = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba())
    buffer = io.BytesIO()
    picture = full.quantize(128, method=Image.Quantize.FASTOCTREE, dither=Image.Dither.NONE)
    picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
