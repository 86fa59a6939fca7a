"""A sweep as one PNG: which settings led to which loss, and how the losses went down."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from crucible.reports.picture import INK, blank_figure, drawing, plain_axes, png
from crucible.sweeps.searchable import Value
from crucible.sweeps.space import Dimension
from crucible.sweeps.trials import Trial

Curve = Sequence[tuple[float, float]]
"""Step and value of what decides."""

MOST_LINES = 120
"""Trials that are drawn, the best first: more lines than that hide each other."""
COLOURS, LIGHTEST, DARKEST = "viridis_r", 0.25, 0.65
"""Green to blue: the map's yellow end cannot be read on a light page, nor its violet end on a dark one."""
BEST = "#c8431f"


def sweep_picture(ranked: Sequence[Trial], dimensions: Sequence[Dimension], curves: Mapping[int, Curve]) -> bytes:
    """Parallel coordinates of the trials (best first in `ranked`) beside their learning curves, as PNG."""
    with drawing:
        figure = blank_figure(8.8, 3.2)
        left, right = figure.subplots(1, 2, width_ratios=(3, 2))
        shown = [trial for trial in ranked if trial.loss is not None][:MOST_LINES]
        if shown:
            colours = _colours(shown)
            _parallel(left, shown, dimensions, colours)
            _learning(right, shown, curves, colours)
        else:
            for axes in (left, right):
                axes.text(0.5, 0.5, "no trial was measured yet", ha="center", color=INK)
                axes.set_axis_off()
        return png(figure)


def _colours(shown: Sequence[Trial]) -> dict[int, Any]:
    """A colour for each trial by its loss; a rank, rather than the loss, so that one bad trial leaves some contrast."""
    from matplotlib import colormaps

    by_loss = sorted(shown, key=lambda trial: trial.loss or 0.0)  # of a metric to be raised, its negative
    step = (DARKEST - LIGHTEST) / max(1, len(by_loss) - 1)
    shades = {trial.number: colormaps[COLOURS](LIGHTEST + place * step) for place, trial in enumerate(by_loss)}
    return shades | {shown[0].number: BEST}


def _parallel(axes: Any, shown: Sequence[Trial], dimensions: Sequence[Dimension], colours: Mapping[int, Any]) -> None:
    """One upright axis for each setting and one for the loss, all drawn from 0 to 1, with their own numbers beside."""
    places = [_Axis.of(dimension) for dimension in dimensions]
    reached = [trial.value for trial in shown if trial.value is not None]
    low, high = min(reached), max(reached)
    for place in range(len(places) + 1):
        axes.axvline(place, color=INK, linewidth=0.8)
    for trial in reversed(shown):  # the best one last, on top of the others
        heights = [axis.height(trial.values.get(axis.name)) for axis in places]
        assert trial.value is not None
        heights.append((trial.value - low) / (high - low) if high > low else 0.5)
        best = trial is shown[0]
        axes.plot(
            range(len(heights)),
            heights,
            color=colours[trial.number],
            linewidth=2.2 if best else 1.0,
            alpha=1.0 if best else 0.7,
            marker="o",
            markersize=3,
        )
    for place, axis in enumerate(places):
        for height, label in axis.marks():
            _label(axes, label, (place, height))
    for height, value in ((0.0, low), (1.0, high)):
        _label(axes, f"{value:.3f}", (len(places), height))
    axes.set_xticks(
        range(len(places) + 1),
        [*(axis.name for axis in places), shown[0].objective.metric.replace("_", " ")],
        fontsize=8,
    )
    axes.set_xlim(-0.1, len(places) + 0.35)
    axes.set_yticks([])
    axes.spines[:].set_visible(False)
    axes.set_title(f"settings and {shown[0].objective.label} (red: best)", fontsize=9, color=INK)
    axes.set_facecolor("none")
    axes.tick_params(colors=INK)


def _label(axes: Any, text: str, place: tuple[float, float]) -> None:
    """A number beside its place on an upright axis."""
    axes.annotate(
        text, place, xytext=(4, 0), textcoords="offset points", fontsize=7, verticalalignment="center", color=INK
    )


def _learning(axes: Any, shown: Sequence[Trial], curves: Mapping[int, Curve], colours: Mapping[int, Any]) -> None:
    for trial in reversed(shown):
        measured = [(step, trial.objective.as_loss(loss)) for step, loss in sorted(trial.losses.items())]
        points = curves.get(trial.number) or measured
        best = trial is shown[0]
        axes.plot(
            *zip(*points, strict=True),
            color=colours[trial.number],
            linewidth=2.2 if best else 1.0,
            alpha=1.0 if best else 0.7,
        )
        axes.plot(trial.shown_step, trial.value, marker="o", markersize=3.5, color=colours[trial.number])
    axes.set_xlabel("step")
    axes.set_ylabel(shown[0].objective.label)
    plain_axes(axes)
    axes.set_title("learning curves", fontsize=9, color=INK)


class _Axis:
    """Where the values of a setting lie between 0 and 1."""

    def __init__(self, name: str, values: Sequence[Value], spread: tuple[float, float] | None, log: bool) -> None:
        self.name, self._values, self._spread, self._log = name, values, spread, log

    @classmethod
    def of(cls, dimension: Dimension) -> _Axis:
        if dimension.kind == "choice":
            values = list(dimension.values)
            if all(isinstance(v, int | float) and not isinstance(v, bool) for v in values):
                values.sort(key=lambda v: float(v))  # type: ignore[arg-type]
            return cls(dimension.name, values, None, False)
        return cls(dimension.name, dimension.ends, (dimension.low, dimension.high), dimension.kind == "loguniform")

    def height(self, value: Value) -> float:
        """A setting that a trial does not have is drawn below the axis."""
        if value is None and None not in self._values:
            return -0.08
        if self._spread is None:
            return self._values.index(value) / max(1, len(self._values) - 1) if len(self._values) > 1 else 0.5
        low, high = self._spread
        assert isinstance(value, int | float)
        if low == high:
            return 0.5
        if self._log:
            return math.log(value / low) / math.log(high / low)
        return (value - low) / (high - low)

    def marks(self) -> list[tuple[float, str]]:
        labels = [f"{value:g}" if isinstance(value, float) else str(value) for value in self._values]
        return [(self.height(value), label) for value, label in zip(self._values, labels, strict=True)]
