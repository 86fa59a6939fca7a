"""The loss curve as a small PNG."""

from __future__ import annotations

import base64
import io
import threading
from collections.abc import Mapping, Sequence
from typing import Any

from crucible.jobs.metrics import Row

MOST_POINTS = 300
"""Of the training loss; of a longer history each is the mean of its neighbours, which shows more than noise would."""

drawing = threading.Lock()  # matplotlib's font cache and text engine are not made for threads


def loss_curve(rows: Sequence[Row], attempt_starts: Mapping[int, int] | None = None) -> bytes:
    """A PNG of training and validation loss over steps, with a line where each later attempt began.

    `rows` as in `Metrics.rows`; `attempt_starts` maps attempt numbers to the steps they resumed from.
    """
    with drawing:
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        figure = Figure(figsize=(8, 3.6), dpi=80, layout="constrained")
        axes = figure.add_subplot()
        train, val = _thinned(_points(rows, "train_loss")), _points(rows, "val_loss")
        if train:
            axes.plot(*zip(*train, strict=True), color="#7aa6d8", linewidth=1.0, label="training")
        if val:
            step, loss = val[-1]
            axes.plot(
                *zip(*val, strict=True), color="#c8431f", linewidth=1.8, marker="o", markersize=3.5, label="validation"
            )
            axes.annotate(
                f"{loss:.3f}", (step, loss), textcoords="offset points", xytext=(-2, 7), ha="right", color="#c8431f"
            )
        if train or val:
            axes.legend(frameon=False, loc="upper right")
        else:
            axes.text(0.5, 0.5, "no losses reported yet", ha="center", transform=axes.transAxes, color="#666666")
        _mark_attempts(axes, attempt_starts or {})
        axes.set_xlabel("step")
        axes.set_ylabel("loss (nats per token)")
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(axis="y", color="#e6e6e6", linewidth=0.7)
        canvas: Any = FigureCanvasAgg(figure)
        canvas.draw()
        return png(canvas)


def data_uri(png: bytes) -> str:
    """The picture as an address that carries it: markdown with it needs no other file."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"


def _points(rows: Sequence[Row], name: str) -> list[tuple[float, float]]:
    return [(row["step"], row[name]) for row in rows if name in row]


def _thinned(points: list[tuple[float, float]]) -> list[tuple[float, float]]:
    size = -(-len(points) // MOST_POINTS)
    groups = [points[i : i + size] for i in range(0, len(points), size)] if size > 1 else []
    return [(group[-1][0], sum(loss for _, loss in group) / len(group)) for group in groups] or points


def _mark_attempts(axes: Any, starts: Mapping[int, int]) -> None:
    """A dashed line for each later attempt; those that began at the same step share one."""
    numbers: dict[int, list[int]] = {}
    for number, step in sorted(starts.items()):
        if number > 1:
            numbers.setdefault(step, []).append(number)
    for step, together in numbers.items():
        axes.axvline(step, color="#555555", linewidth=0.9, linestyle="--")
        axes.annotate(
            f"attempt {', '.join(map(str, together))}",
            (step, 1.0),
            xycoords=("data", "axes fraction"),
            textcoords="offset points",
            xytext=(3, -4),
            va="top",
            fontsize=8,
            color="#555555",
            rotation=90,
        )


def png(canvas: Any) -> bytes:
    """The drawn canvas as PNG. A palette of 64 colours halves the size and looks the same."""
    from PIL import Image

    buffer = io.BytesIO()
    full = Image.frombuffer("RGBA", canvas.get_width_height(), canvas.buffer_rgba()).convert("RGB")
    picture = full.quantize(64, dither=Image.Dither.NONE)
    picture.save(buffer, format="png", optimize=True)
    return buffer.getvalue()
