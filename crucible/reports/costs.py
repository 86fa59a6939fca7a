"""What was spent, as markdown: the total and its trend, budgets, what was saved, who and what it went to, what would
have been cheaper."""

from __future__ import annotations

from collections.abc import Sequence
from datetime import date, datetime, timedelta

from crucible.billing.budgets import BudgetLimit, BudgetState
from crucible.billing.costs import MICRO, AttemptCost, advice, breakdown, saved_share, total_micro_usd
from crucible.formatting import counted, markdown_table, rough_duration
from crucible.reports.curve import bar
from crucible.reports.picture import TRAINING, blank_figure, data_uri, drawing, plain_axes, png

_SECTIONS = ("project", "owner", "stage", "pool", "gpu", "sweep", "job")
_ROWS = 20
TREND_DAYS = 30
"""Shown in the trend, at least; twice the report's own period if that is longer."""


def cost_page(
    costs: Sequence[AttemptCost], title: str, since: datetime, until: datetime, budgets: Sequence[BudgetState]
) -> str:
    """The report of the attempts that began in [since, until), with the trend of all that are given and the budgets."""
    own = [cost for cost in costs if since <= cost.started_at < until]
    head, _, tables = cost_report(own, title).partition("\n## ")
    days = max(TREND_DAYS, 2 * (until - since).days)
    parts = [head.rstrip(), trend(costs, since, until)]
    if any(cost.micro_usd for cost in costs):
        picture = data_uri(trend_picture(spent_by_day(costs, until, days)))
        parts.append(f"![dollars spent on each of the last {days} days]({picture})")
    if budgets:
        parts += ["## Budgets", budgets_table(budgets)]
    parts += [f"## {tables.rstrip()}"] if tables else []
    return "\n\n".join(filter(None, parts)) + "\n"


def trend(costs: Sequence[AttemptCost], since: datetime, until: datetime) -> str:
    """The period compared with the one before, as a sentence; empty if nothing was spent in either."""
    length = until - since
    now, before = (
        total_micro_usd([cost for cost in costs if begin <= cost.started_at < begin + length])
        for begin in (since, since - length)
    )
    if not now and not before:
        return ""
    days = f"the {counted(length.days, 'day')} before"
    if not before:
        return f"Nothing was spent in {days}."
    return f"${before / MICRO:,.2f} in {days}: {abs(now / before - 1):.0%} {'more' if now >= before else 'less'} now."


def spent_by_day(costs: Sequence[AttemptCost], until: datetime, days: int) -> list[tuple[date, float]]:
    """USD of the attempts that began on each of the last `days` days (UTC), oldest first."""
    spent = {(until - timedelta(days=back)).date(): 0 for back in reversed(range(days))}
    for cost in costs:
        if (day := cost.started_at.date()) in spent:
            spent[day] += cost.micro_usd
    return [(day, micro / MICRO) for day, micro in spent.items()]


def trend_picture(spent: Sequence[tuple[date, float]]) -> bytes:
    """A PNG with one bar for each day."""
    with drawing:
        figure = blank_figure(6.4, 1.7)
        axes = figure.add_subplot()
        axes.bar(range(len(spent)), [usd for _, usd in spent], color=TRAINING, width=0.8)
        marks = range(len(spent) - 1, -1, -7)
        axes.set_xticks(list(marks), [f"{spent[mark][0]:%d %b}" for mark in marks], fontsize=8)
        axes.set_ylabel("USD a day", fontsize=8)
        axes.tick_params(labelsize=8)
        plain_axes(axes)
        return png(figure)


def budgets_table(states: Sequence[BudgetState]) -> str:
    """Each budget with a bar of what is used, the fullest first. Cells have several lines: it fits on a telephone."""
    rows = [
        [
            f"**{state.limit.name}**<br>{_whose(state.limit)}<br>"
            + ("jobs stop at it" if state.limit.stop_jobs else "no job starts beyond it"),
            f"{bar(state.percent / 100)}<br>{state.percent:.0f}%",
            f"**${state.spent_usd:,.2f}**<br>of ${state.limit.usd:,.2f}<br>this {state.limit.period}",
        ]
        for state in sorted(states, key=lambda state: -state.percent)
    ]
    return markdown_table(["budget", "used", "spent"], rows)


def _whose(limit: BudgetLimit) -> str:
    whose = [f"project {limit.project}" if limit.project else "", f"owner {limit.owner}" if limit.owner else ""]
    return ", ".join(filter(None, whose)) or "everybody"


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
                f"{rough_duration(group.seconds / 3600)}<br>{counted(group.attempts, 'attempt')}",
                f"{group.micro_usd / MICRO:.6f}<br>{bar(group.share, 5)} {group.share:.0%}",
                f"{group.saved_share:.0%}",
            ]
            for group in breakdown(costs, by)[:_ROWS]
        ]
        table = markdown_table([by, "time", "USD", "saved"], rows, numbers=[1, 2, 3])
        lines += ["", f"## By {by}", "", table]
    return "\n".join(lines) + "\n"
