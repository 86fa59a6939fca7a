"""Budgets of a project or an owner per day or month: what is spent, reserved and left, and which alerts are due.

budgets/<name>/<period>/50.json …                 the alert at 50 per cent was sent; create-only, so it is sent once
budgets/<name>/<period>/reservations/0001.json …  what jobs that have started will need at least
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Literal
from uuid import uuid4

from pydantic import Field

from crucible.billing.costs import MICRO, AttemptCost, skipping_damage, total_micro_usd
from crucible.errors import ConfigError, ObjectExists, RecordDamaged
from crucible.formatting import money
from crucible.jobs.job import Job
from crucible.jobs.records import Record
from crucible.jobs.records import now as utc_now
from crucible.jobs.status import JobState, status_of
from crucible.store import Store

logger = logging.getLogger(__name__)

SECONDS_TO_STOP = 120.0
"""From the look that finds a budget used up until the jobs have saved and stopped."""
SECONDS_TO_START = 900.0
"""A reservation of a job that has no supervisor counts this long: the job may be about to start."""
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
    stop_jobs: bool = False
    """Whether running jobs save and stop when it is used up."""

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

    def folder(self, now: datetime) -> str:
        """Where the store keeps this budget's records of the running period."""
        began = self.began(now)
        return f"budgets/{self.name}/" + (f"{began:%Y-%m-%d}" if self.period == "day" else f"{began:%Y-%m}")

    def own(self, costs: Sequence[AttemptCost], now: datetime) -> list[AttemptCost]:
        """The attempts of the running period that it covers; an attempt counts in the period it began in."""
        began, ends = self.began(now), self.ends(now)
        return [cost for cost in costs if self.covers(cost.project, cost.owner) and began <= cost.started_at < ends]

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
        """As a message."""
        limit = self.limit
        whose = f" by project {limit.project}" if limit.project else ""
        whose += f" by owner {limit.owner}" if limit.owner else ""
        return (
            f"budget {limit.name}: ${self.spent_usd:,.2f} of ${limit.usd:,.2f} spent this {limit.period}{whose} "
            f"({self.percent:.0f} %)"
        )


class Reservation(Record):
    """What a job that is about to start will cost at least."""

    job_id: str
    usd: float = Field(ge=0)
    at: datetime = Field(default_factory=utc_now)
    token: str = Field(default_factory=lambda: uuid4().hex)


@dataclass(frozen=True)
class Alert:
    """A threshold that has been crossed for the first time in this period."""

    state: BudgetState
    percent: int

    def sentence(self) -> str:
        """As a message."""
        return f"{self.percent} % reached: {self.state.sentence()}"


def budget_state(limit: BudgetLimit, costs: Sequence[AttemptCost], now: datetime) -> BudgetState:
    """What the budget's own attempts of the running period have cost so far."""
    return BudgetState(limit, total_micro_usd(limit.own(costs, now)))


def due_alerts(store: Store, state: BudgetState, now: datetime) -> list[Alert]:
    """The thresholds crossed and not yet alerted in this period, lowest first; marks them as sent."""
    alerts = []
    for percent in THRESHOLDS:
        if state.percent < percent:
            continue
        # The token makes the record unique: equal bytes would count as created by both of two watchers.
        record = {"schema_version": 1, "at": now.isoformat(), "spent_usd": state.spent_usd, "token": uuid4().hex}
        try:
            store.create_json(f"{state.limit.folder(now)}/{percent}.json", record)
        except ObjectExists:
            continue
        alerts.append(Alert(state, percent))
    return alerts


def reserve(
    store: Store, limit: BudgetLimit, costs: Sequence[AttemptCost], claim: Reservation, now: datetime
) -> str | None:
    """Set the job's low estimate aside in the budget; or why that is not possible, in a sentence.

    Safe if several jobs start at once: reservations are numbered, create-only objects, each counts
    those before it, and one that does not fit is withdrawn. A job that asks again keeps its number.
    """
    folder = f"{limit.folder(now)}/reservations"
    number = _take_number(store, folder, claim)
    spent_by = _spent_by_job(limit, costs, now)
    others = [held for held_number, held in _reservations(store, folder).items() if held_number < number]
    held_usd = sum(
        max(0.0, held.usd - spent_by.get(held.job_id, 0.0))
        for held in others
        if held.job_id != claim.job_id and _still_needed(store, held, now)
    )
    state = budget_state(limit, costs, now)
    left_usd = max(0.0, state.left_usd - held_usd)
    if claim.usd <= left_usd:
        return None
    release(store, limit, claim.job_id, now)
    reserved = f" ({money(held_usd)} reserved by other jobs)" if held_usd else ""
    return (
        f"the job costs {money(claim.usd)} at least and {money(left_usd)} are left{reserved}: "
        f"{state.sentence()}; raise the budget or wait for the next {limit.period}"
    )


def release(store: Store, limit: BudgetLimit, job_id: str, now: datetime) -> None:
    """Withdraw the job's reservation, if it has one."""
    folder = f"{limit.folder(now)}/reservations"
    for number, held in _reservations(store, folder).items():
        if held.job_id == job_id:
            store.delete(f"{folder}/{number:04d}.json")


def why_stop(limit: BudgetLimit, costs: Sequence[AttemptCost], now: datetime) -> str | None:
    """Why the jobs of a budget that stops its jobs must save and stop now, or None.

    What the running attempts will cost until they have saved counts as spent, so that together they end below the
    limit.
    """
    if not limit.stop_jobs:
        return None
    state = budget_state(limit, costs, now)
    running = [cost for cost in costs if cost.running and limit.covers(cost.project, cost.owner)]
    to_save_usd = sum(cost.usd_per_hour for cost in running) * SECONDS_TO_STOP / 3600
    return state.sentence() if state.spent_usd + to_save_usd >= limit.usd else None


def _take_number(store: Store, folder: str, claim: Reservation) -> int:
    """The number of the job's reservation, a new one or the one it has."""
    while True:
        held = _reservations(store, folder)
        for number, other in held.items():
            if other.job_id == claim.job_id:
                return number
        number = max(held, default=0) + 1
        try:
            store.create_model(f"{folder}/{number:04d}.json", claim)
        except ObjectExists:
            continue
        return number


def _reservations(store: Store, folder: str) -> dict[int, Reservation]:
    found = {}
    for info in store.list(folder):
        name = info.key.rsplit("/", 1)[-1].removesuffix(".json")
        if name.isdecimal():
            with skipping_damage(logger.warning, f"reservation {info.key} does not count"):
                found[int(name)] = store.read_model(info.key, Reservation)
    return found


def _still_needed(store: Store, held: Reservation, now: datetime) -> bool:
    """Whether the job runs, or may be about to start."""
    try:
        status = status_of(Job(store, held.job_id))
    except (RecordDamaged, ConfigError):
        return True
    if status is None:
        return (now - held.at).total_seconds() < SECONDS_TO_START
    return status.state is JobState.RUNNING


def _spent_by_job(limit: BudgetLimit, costs: Sequence[AttemptCost], now: datetime) -> dict[str, float]:
    spent: dict[str, float] = {}
    for cost in limit.own(costs, now):
        spent[cost.job] = spent.get(cost.job, 0.0) + cost.usd
    return spent
