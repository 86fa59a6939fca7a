"""Cost reports and budget alerts: reading the records, showing them in the Prefect UI."""

from __future__ import annotations

from datetime import datetime, timedelta
from typing import Literal

import httpx
from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.exceptions import PrefectHTTPStatusError

from blocks.budget import Budget
from crucible.billing.budgets import BudgetLimit, budget_state, due_alerts
from crucible.billing.costs import MICRO, AttemptCost, as_csv, as_rows, attempt_costs, total_micro_usd
from crucible.catalog.offers import load_catalog
from crucible.reports.costs import cost_report
from crucible.store import Store

Period = Literal["day", "week", "month"]
_DAYS = {"day": 1, "week": 7, "month": 30}
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
    offers = {offer.key: offer for offer in load_catalog()}
    return attempt_costs(store, offers, since=now - timedelta(days=_DAYS[period]), until=now)


def publish_costs(store: Store, period: Period, now: datetime) -> float:
    """The report as an artifact under a constant key; returns the total in USD."""
    costs = period_costs(store, period, now)
    title = f"Costs of the last {period}, until {now:%Y-%m-%d %H:%M} UTC"
    create_markdown_artifact(cost_report(costs, title), key=f"cost-report-{period}", description=title)
    create_table_artifact(
        [{name: row[name] for name in _SHOWN} for row in as_rows(costs)],
        key=f"cost-attempts-{period}",
        description=f"{title}: every attempt",
    )
    return total_micro_usd(costs) / MICRO


def write_csv(store: Store, period: Period, now: datetime) -> str:
    """One line per attempt in the store; returns the key."""
    key = f"reports/costs/{period}-{now:%Y-%m-%d}.csv"
    store.write(key, as_csv(period_costs(store, period, now)).encode())
    return key


def budget_limits() -> list[BudgetLimit]:
    """Every `Budget` block that is saved on the server; none where nobody has ever saved one."""
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
            block = Budget.load(document.name)
            assert isinstance(block, Budget)
            limits.append(block.limit(document.name))
    return limits


def give_alerts(store: Store, now: datetime) -> list[str]:
    """Send an event for every threshold crossed for the first time; returns what was said."""
    limits = budget_limits()
    if not limits:
        return []
    offers = {offer.key: offer for offer in load_catalog()}
    costs = attempt_costs(store, offers, since=min(limit.began(now) for limit in limits))
    said = []
    for limit in limits:
        for alert in due_alerts(store, budget_state(limit, costs, now), now):
            said.append(alert.sentence())
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
    return said
