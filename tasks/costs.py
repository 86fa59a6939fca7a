"""Cost reports and budget alerts: reading the records, showing them in the Prefect UI."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Literal

import httpx
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.exceptions import PrefectException, PrefectHTTPStatusError
from pydantic import ValidationError

from blocks.budget import Budget
from crucible.billing.budgets import BudgetLimit, budget_state, due_alerts, why_stop
from crucible.billing.costs import MICRO, AttemptCost, Bill, as_csv, as_rows, attempt_costs, total_micro_usd
from crucible.catalog.offers import load_catalog
from crucible.errors import ConfigError, StoreUnavailable
from crucible.prefect_compat.live_artifacts import LiveArtifact
from crucible.reports.costs import cost_page
from crucible.settings import explain_validation_error
from crucible.store import Store

logger = logging.getLogger(__name__)

Period = Literal["day", "week", "month"]
BUDGET_SECONDS = 60.0
"""Between two looks at the budgets while a job runs."""
_DAYS = {"day": 1, "week": 7, "month": 30}
_TREND_DAYS = 2 * _DAYS["month"]
_SHOWN = (
    "job",
    "attempt",
    "pool",
    "instance",
    "project",
    "owner",
    "started_at",
    "seconds",
    "usd_per_hour",
    "usd",
    "end_reason",
)


def period_costs(store: Store, period: Period, now: datetime) -> list[AttemptCost]:
    """The attempts that began within the period before `now`."""
    return costs_since(store, now - timedelta(days=_DAYS[period]), now)


def publish_costs(store: Store, period: Period, now: datetime) -> float:
    """The report as an artifact under a constant key; returns the total in USD."""
    since = now - timedelta(days=_DAYS[period])
    limits = budget_limits()
    known = costs_since(store, min([now - timedelta(days=_TREND_DAYS), *(limit.began(now) for limit in limits)]), now)
    states = [budget_state(limit, known, now) for limit in limits]
    title = f"Costs of the last {period}, until {now:%Y-%m-%d %H:%M} UTC"
    LiveArtifact(f"cost-report-{period}", "markdown").publish(cost_page(known, title, since, now, states), title)
    costs = [cost for cost in known if cost.started_at >= since]
    rows = [{name: row[name] for name in _SHOWN} for row in as_rows(costs)]
    LiveArtifact(f"cost-attempts-{period}", "table").publish(rows, f"{title}: every attempt")
    return total_micro_usd(costs) / MICRO


def write_csv(store: Store, period: Period, now: datetime) -> str:
    """One line per attempt in the store; returns the key."""
    key = f"reports/costs/{period}-{now:%Y-%m-%d}.csv"
    store.write(key, as_csv(period_costs(store, period, now)).encode())
    return key


@cache
def _warn_once(problem: str) -> None:
    logger.warning("%s; until then it is not enforced", problem)


def budget_limits(invalid: Callable[[str], object] = _warn_once) -> list[BudgetLimit]:
    """Every `Budget` block that is saved on the server; empty if there is none.

    The server takes any block from its API. One that is not valid is left out, and `invalid` is told: a running job
    goes on, a new one may refuse to start.
    """
    try:
        with get_client(sync_client=True) as client:
            documents = client.read_block_documents_by_type(Budget.get_block_type_slug())
    except PrefectHTTPStatusError as error:
        if error.response.status_code == httpx.codes.NOT_FOUND:
            return []
        raise
    limits = []
    for document in documents:
        if document.name:
            try:
                limits.append(Budget.model_validate(document.data).limit(document.name))
            except (ValidationError, ConfigError) as error:
                why = explain_validation_error(error) if isinstance(error, ValidationError) else str(error)
                invalid(f"the Budget block {document.name} is not valid ({why}): mend it in the Prefect UI")
    return limits


class BudgetWatch:
    """Checks, at most once a minute, whether a budget that stops its jobs is used up."""

    def __init__(self, store: Store, project: str, owner: str) -> None:
        self._bill = Bill(store, {offer.key: offer for offer in load_catalog()})
        self._project, self._owner = project, owner
        self._answer: str | None = None
        self._look_at = -math.inf

    def __call__(self) -> str | None:
        """Why the job must save and stop, or None; keeps its last answer while server or store are away."""
        if time.monotonic() < self._look_at:
            return self._answer
        began = time.monotonic()
        with suppress(httpx.HTTPError, PrefectException, StoreUnavailable):
            self._answer = self._look(datetime.now(UTC))
        took = time.monotonic() - began
        self._look_at = began + max(BUDGET_SECONDS, 50 * took)  # at most 2 % of the supervisor's time
        return self._answer

    def _look(self, now: datetime) -> str | None:
        limits = [limit for limit in budget_limits() if limit.stop_jobs and limit.covers(self._project, self._owner)]
        if not limits:
            return None
        costs = self._bill.read(since=min(limit.began(now) for limit in limits))
        return next((reason for limit in limits if (reason := why_stop(limit, costs, now)) is not None), None)


def costs_since(store: Store, since: datetime, until: datetime | None = None) -> list[AttemptCost]:
    """The attempts that began in [since, until)."""
    return attempt_costs(store, {offer.key: offer for offer in load_catalog()}, since=since, until=until)


def send_alerts(store: Store, now: datetime) -> list[str]:
    """Send an event for every threshold crossed for the first time; returns the messages."""
    limits = budget_limits()
    if not limits:
        return []
    costs = costs_since(store, min(limit.began(now) for limit in limits))
    sent = []
    for limit in limits:
        for alert in due_alerts(store, budget_state(limit, costs, now), now):
            sent.append(alert.sentence())
            emit_event(
                "crucible.budget",
                resource={
                    "prefect.resource.id": f"crucible.budget.{limit.name}",
                    "prefect.resource.name": limit.name,
                    "crucible.percent": str(alert.percent),
                },
                payload={
                    "message": alert.sentence(),
                    "percent": alert.percent,
                    "spent_usd": alert.state.spent_usd,
                    "limit_usd": limit.usd,
                    "period": limit.period,
                },
            )
    return sent
