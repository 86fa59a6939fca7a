"""What was spent, as markdown: the total, what was saved, who and what it went to, what would have been cheaper."""

from __future__ import annotations

from collections.abc import Sequence

from crucible.billing.costs import MICRO, AttemptCost, advice, breakdown, saved_share, total_micro_usd
from crucible.formatting import counted, markdown_table, rough_duration

_SECTIONS = ("project", "owner", "stage", "pool", "gpu", "sweep", "job")
_ROWS = 20


def cost_report(costs: Sequence[AttemptCost], title: str) -> str:
    """Markdown, with one table per way of splitting the sum."""
    if not costs:
        return f"# {title}\n\nNo attempt was running.\n"
    total, saved = total_micro_usd(costs), saved_share(costs)
    idle = sum(cost.idle_seconds for cost in costs)
    spot = sum(cost.micro_usd for cost in costs if cost.pool == "ec2-spot") / total if total else 0.0
    seconds = sum(cost.seconds for cost in costs)
    lines = [
        f"# {title}",
        "",
        f"**${total / MICRO:,.6f}** for {counted(len(costs), 'attempt')} of "
        f"{counted(len({cost.job for cost in costs}), 'job')}, {rough_duration(seconds / 3600)} in all. "
        f"{saved:.0%} saved against on-demand, {spot:.0%} of the money on spot, "
        f"{rough_duration(idle / 3600)} of start-up.",
    ]
    notes = advice(costs)
    if notes:
        lines += ["", *(f"- {note}" for note in notes)]
    for by in _SECTIONS:
        if not any(getattr(cost, by) for cost in costs):
            continue
        rows = [
            [
                group.name,
                str(group.attempts),
                rough_duration(group.seconds / 3600),
                f"{group.micro_usd / MICRO:.6f}",
                f"{group.share:.0%}",
                f"{group.saved_share:.0%}",
            ]
            for group in breakdown(costs, by)[:_ROWS]
        ]
        table = markdown_table([by, "attempts", "time", "USD", "share", "saved"], rows, numbers=[1, 3, 4, 5])
        lines += ["", f"## By {by}", "", table]
    return "\n".join(lines) + "\n"
