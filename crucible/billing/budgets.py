"""Budgets of a project or an owner per day or month: what is spent, what is left, which alerts are due.

An alert is due once per budget, period and threshold; that it was given is a create-only object in the store
(`budgets/<name>/<period>/<percent>.json`), so that of several watchers exactly one gives it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import uuid4

from crucible.billing.costs import MICRO, AttemptCost, total_micro_usd
from crucible.errors import ConfigError, ObjectExists
from crucible.store import Store

THRESHOLDS = (50, 80, 100)
"""Per cent of a budget at which an alert is due."""


@dataclass(frozen=True)
class BudgetLimit:
    """How much a project (or an owner, or everybody) may spend per calendar day or month, in UTC."""

    name: str
    usd: float
    period: Literal["day", "month"] = "month"
    project: str = ""
    """Empty: all projects."""
    owner: str = ""
    """Empty: all owners."""

    def __post_init__(self) -> None:
        if not 0 < self.usd < float("inf"):
            raise ConfigError(f"usd of budget {self.name} is {self.usd}: it must be a number > 0")

    def began(self, now: datetime) -> datetime:
        """When the running period began."""
        midnight = now.replace(hour=0, minute=0, second=0, microsecond=0)
        return midnight if self.period == "day" else midnight.replace(day=1)

    def ends(self, now: datetime) -> datetime:
        """When the next period begins."""
        began = self.began(now)
        return began + timedelta(days=1) if self.period == "day" else (began + timedelta(days=32)).replace(day=1)

    def covers(self, project: str, owner: str) -> bool:
        return self.project in ("", project) and self.owner in ("", owner)


@dataclass(frozen=True)
class BudgetState:
    """A budget now."""

    limit: BudgetLimit
    spent_micro_usd: int

    @property
    def spent_usd(self) -> float:
        return self.spent_micro_usd / MICRO

    @property
    def left_usd(self) -> float:
        """Never below zero."""
        return max(0.0, self.limit.usd - self.spent_usd)

    @property
    def percent(self) -> float:
        return 100 * self.spent_usd / self.limit.usd

    def sentence(self) -> str:
        """For people."""
        limit = self.limit
        whose = f" by project {limit.project}" if limit.project else ""
        whose += f" by owner {limit.owner}" if limit.owner else ""
        return (
            f"budget {limit.name}: ${self.spent_usd:,.2f} of ${limit.usd:,.2f} spent this {limit.period}{whose} "
            f"({self.percent:.0f} %)"
        )


@dataclass(frozen=True)
class Alert:
    """A threshold that has been crossed for the first time in this period."""

    state: BudgetState
    percent: int

    def sentence(self) -> str:
        """For people."""
        return f"{self.percent} % reached: {self.state.sentence()}"


def budget_state(limit: BudgetLimit, costs: Sequence[AttemptCost], now: datetime) -> BudgetState:
    """What the budget's own attempts of the running period cost. An attempt counts in the period it began in."""
    began, ends = limit.began(now), limit.ends(now)
    own = [cost for cost in costs if limit.covers(cost.project, cost.owner) and began <= cost.started_at < ends]
    return BudgetState(limit, total_micro_usd(own))


def due_alerts(store: Store, state: BudgetState, now: datetime) -> list[Alert]:
    """The thresholds crossed and not yet alerted in this period, lowest first; marks them as given."""
    began = state.limit.began(now)
    period = f"{began:%Y-%m-%d}" if state.limit.period == "day" else f"{began:%Y-%m}"
    alerts = []
    for percent in THRESHOLDS:
        if state.percent < percent:
            continue
        # The token makes the record this watcher's own: equal bytes would count as created by both of two.
        record = {"schema_version": 1, "at": now.isoformat(), "spent_usd": state.spent_usd, "token": uuid4().hex}
        try:
            store.create_json(f"budgets/{state.limit.name}/{period}/{percent}.json", record)
        except ObjectExists:
            continue
        alerts.append(Alert(state, percent))
    return alerts


def why_over_budget(states: Sequence[BudgetState], low_estimate_usd: float, project: str, owner: str) -> str | None:
    """Why a job may not start: its low estimate does not fit into what is left of a budget that covers it, or None."""
    for state in states:
        if state.limit.covers(project, owner) and low_estimate_usd > state.left_usd:
            return (
                f"the job costs ${low_estimate_usd:,.2f} at least and ${state.left_usd:,.2f} are left: "
                f"{state.sentence()}; raise the budget or wait for the next {state.limit.period}"
            )
    return None
