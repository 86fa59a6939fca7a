"""A picture of what the deadline policies cost: one group of bars per deadline, the omniscient bound as a line."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from crucible.errors import ConfigError
from crucible.placement.simulate import OMNISCIENT, Summary


def save_plot(summaries: Sequence[Summary], target: Path) -> None:
    """Write a PNG, SVG or PDF, by the ending of `target`.

    Raises:
        ConfigError: an ending that is none of these, or a folder that does not exist.
    """
    if target.suffix.lower() not in {".png", ".svg", ".pdf"}:
        raise ConfigError(f"plot file is {target}: its name must end in .png, .svg or .pdf")
    if not target.parent.is_dir():
        raise ConfigError(f"plot file is {target}: the folder {target.parent} does not exist")
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    ratios = list(dict.fromkeys(summary.deadline_ratio for summary in summaries))
    policies = [name for name in dict.fromkeys(summary.policy for summary in summaries) if name != OMNISCIENT]
    cost = {(summary.policy, summary.deadline_ratio): summary.cost for summary in summaries}
    width = 0.8 / len(policies)

    figure = Figure(figsize=(8, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.subplots()
    for place, policy in enumerate(policies):
        left = [group - 0.4 + (place + 0.5) * width for group in range(len(ratios))]
        heights = [cost[policy, ratio] for ratio in ratios]
        bars = axes.bar(left, heights, width * 0.95, label=policy)
        axes.bar_label(bars, fmt="%.2f", fontsize=8)
    for group, ratio in enumerate(ratios):
        label = "omniscient bound" if group == 0 else "_nolegend_"
        axes.hlines(cost[OMNISCIENT, ratio], group - 0.42, group + 0.42, colors="black", linestyles="--", label=label)
    axes.set_xticks(range(len(ratios)), [f"deadline {ratio:g} × job" for ratio in ratios])
    axes.set_ylabel("mean cost (1 = all on demand)")
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, ncols=3, loc="upper center", bbox_to_anchor=(0.5, 1.15), frameon=False)
    figure.savefig(target, dpi=150)
