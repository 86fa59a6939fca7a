"""A recommendation as a markdown page: chart, table, pros and cons."""

from __future__ import annotations

import io

from crucible.estimate.estimate import Range
from crucible.estimate.needs import Needs
from crucible.estimate.ranking import Ranked
from crucible.estimate.request import EstimateResult
from crucible.estimate.script import ScriptNeeds
from crucible.formatting import markdown_table, money, rough_duration, size
from crucible.reports.picture import data_uri

_BARS = 12
_TABLE = 20
_EXPLAINED = 5


def recommendation_report(result: EstimateResult) -> str:
    """Markdown: what is needed, the best offer and why, a bar chart, the table, the reasons for and against."""
    ranked = result.recommendation.ranked
    best = ranked[0]
    lines = [
        f"# Run it on {best.estimate.offer.key}",
        "",
        f"{hours_span(best.estimate.hours)}, {usd_span(best.estimate.usd)}. {remarks(best)}.",
        "",
        needs_summary(result.needs),
        "",
        f"![cost and time of the best offers]({data_uri(bar_chart(ranked[:_BARS]))})",
        "",
        ranking_table(ranked[:_TABLE]),
        "",
        "## Pros and cons",
        "",
        *(f"- **{entry.estimate.offer.key}**: {remarks(entry)}" for entry in ranked[:_EXPLAINED]),
    ]
    rejected = result.recommendation.rejected
    if rejected:
        lines += ["", "## Does not fit", "", *(f"- {entry.offer.key}: {entry.reason}" for entry in rejected)]
    notes = (*result.recommendation.advice, *result.warnings)
    if notes:
        lines += ["", "## Notes", "", *(f"- {note}" for note in notes)]
    return "\n".join(lines) + "\n"


def ranking_table(ranked: tuple[Ranked, ...]) -> str:
    """The offers as a markdown table."""
    rows = [
        [
            str(place),
            entry.estimate.offer.key,
            entry.estimate.offer.gpu or "-",
            hours_span(entry.estimate.hours),
            usd_span(entry.estimate.usd),
            entry.estimate.speed.source,
        ]
        for place, entry in enumerate(ranked, 1)
    ]
    return markdown_table(["", "offer", "GPU", "time", "cost", "speed from"], rows, numbers=[0])


def bar_chart(ranked: tuple[Ranked, ...]) -> bytes:
    """PNG: likely cost and time of each offer with their ranges, side by side."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 0.9 + 0.34 * len(ranked)), layout="constrained")
    FigureCanvasAgg(figure)
    cost, time = figure.subplots(1, 2, sharey=True)
    places = range(len(ranked))
    for axes, title, color, ranges in (
        (cost, "USD", "tab:blue", [entry.estimate.usd for entry in ranked]),
        (time, "hours", "tab:orange", [entry.estimate.hours for entry in ranked]),
    ):
        errors = [
            [span.likely - span.low for span in ranges],
            [span.high - span.likely for span in ranges],
        ]
        axes.barh(places, [span.likely for span in ranges], xerr=errors, color=color, ecolor="0.4", capsize=2)
        axes.set_xlabel(title)
        axes.spines[["top", "right"]].set_visible(False)
    cost.set_yticks(places, [entry.estimate.offer.key for entry in ranked])
    cost.invert_yaxis()
    image = io.BytesIO()
    figure.savefig(image, format="png", dpi=100)
    return image.getvalue()


def needs_summary(needs: Needs | ScriptNeeds, separator: str = " ") -> str:
    """What the run needs, then each value that was inferred, after `separator`."""
    if isinstance(needs, Needs):
        summary = (
            f"{needs.parameters:,} parameters, {needs.tokens:,} tokens in {needs.steps:,} steps, "
            f"{needs.flops:.2g} FLOP, checkpoints of {size(needs.checkpoint_bytes)}."
        )
    else:
        summary = f"A script that took {needs.hours:g} h on {needs.measured_on.instance}."
    return "".join([summary, *(f"{separator}{sentence}." for sentence in needs.inferred)])


def hours_span(hours: Range) -> str:
    """Likely, low and high."""
    return f"{rough_duration(hours.likely)} ({rough_duration(hours.low)}–{rough_duration(hours.high)})"


def usd_span(usd: Range) -> str:
    """Likely, low and high."""
    return "free" if usd.high == 0 else f"{money(usd.likely)} ({money(usd.low)}–{money(usd.high)})"


def remarks(entry: Ranked) -> str:
    """The offer's pros and cons on one line."""
    return "; but ".join(", ".join(found) for found in (entry.pros, entry.cons) if found) or "no pros or cons"
