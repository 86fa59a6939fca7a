"""A job's bill in its report: every attempt and stage on every pool, the savings, what interruptions cost in time."""

from __future__ import annotations

from crucible.billing.costs import MICRO, on_demand_micro_usd
from crucible.billing.machines import on_demand_usd_per_hour, shown_machines
from crucible.catalog.offers import Offer, load_catalog
from crucible.errors import ConfigError
from crucible.formatting import UNKNOWN, duration, markdown_table, money
from crucible.jobs.stage_records import StageRun
from crucible.reports.summary import AttemptSummary, JobSummary


def bill(summary: JobSummary) -> str:
    """Markdown: a table whose rows add up to the last one, to the millionth of a dollar, and remarks on it.

    The catalog gives the on-demand prices.
    """
    known = _catalog()
    rows: list[list[str]]
    entries: list[tuple[str, AttemptSummary | StageRun]]
    rows, paid, on_demand, seconds = [], 0, 0, 0.0
    entries = [(run.stage, run) for run in summary.stages if run.stage == "preprocess"]
    entries += [(str(attempt.number), attempt) for attempt in summary.attempts]
    entries += [(run.stage, run) for run in summary.stages if run.stage != "preprocess"]
    for name, entry in entries:
        micro = round(entry.cost_usd * MICRO)
        paid += micro
        machines = entry.machines if isinstance(entry, AttemptSummary) else [entry.instance]
        price = on_demand_usd_per_hour(entry.pool, machines, known)
        on_demand += on_demand_micro_usd(entry.seconds, micro, price)
        seconds += entry.seconds
        machine = f"{entry.pool or UNKNOWN}<br>{shown_machines(machines) or UNKNOWN}"
        figures = [duration(entry.seconds), f"{entry.usd_per_hour:.4f}", f"{micro / MICRO:.6f}"]
        rows.append([name, machine, *figures])
    rows.append(["total", "", duration(seconds), "", f"{paid / MICRO:.6f}"])
    table = markdown_table(["attempt", "machine", "time", "USD/h", "USD"], rows, numbers=(2, 3, 4))
    remarks = [_saved(paid, on_demand), _extra(summary.attempts), _left(summary), _unplanned(summary.attempts)]
    return "\n\n".join([table, *filter(None, remarks)])


def _saved(paid: int, on_demand: int) -> str:
    """As SageMaker counts the savings of managed spot training: 1 - paid / on-demand."""
    if on_demand <= paid:
        return ""
    share = 1 - paid / on_demand
    return f"{share:.0%} saved: the same time on demand would have cost ${on_demand / MICRO:.6f}."


def _extra(attempts: tuple[AttemptSummary, ...]) -> str:
    """What interruptions cost in time: until the next new step, and steps that were trained twice."""
    recovering = sum(attempt.recovery_seconds or 0.0 for attempt in attempts)
    repeated = sum(attempt.steps_lost for attempt in attempts)
    if not recovering and not repeated:
        return ""
    return f"Recovering from interruptions took {duration(recovering)} in all; {repeated:,} steps were trained twice."


def _left(summary: JobSummary) -> str:
    return f"About {money(summary.cost_left_usd)} more until the end." if summary.cost_left_usd else ""


def _unplanned(attempts: tuple[AttemptSummary, ...]) -> str:
    """The attempts that ran on another machine, or at another price, than planned."""
    return "\n".join(f"- Attempt {a.number}: {a.price_remark}." for a in attempts if a.price_remark)


def _catalog() -> dict[str, Offer]:
    try:
        return {offer.key: offer for offer in load_catalog()}
    except ConfigError:
        return {}  # an offers file that cannot be read: `crucible estimate` reports it
