"""What was spent, by project, owner, stage, pool and GPU; as an artifact, and as CSV in the store.

    python -m flows.cost_report month

Also here: the watch over budgets (`check-budgets`), which sends the event `crucible.budget` at 50, 80 and 100 per cent.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Annotated, Any, Literal

from prefect import flow
from prefect.client.schemas.objects import State
from prefect.logging import get_run_logger
from prefect.runtime import flow_run
from prefect.states import Completed
from pydantic import Field

from flows.forms import described
from tasks.costs import publish_costs, send_alerts, write_csv
from tasks.observing import add_tags
from tasks.storage import open_store


@flow(name="cost-report", flow_run_name="cost-report {period}", persist_result=False)
@described
def cost_report(
    period: Annotated[
        Literal["day", "week", "month"], Field(description="The last 24 hours, 7 days or 30 days.")
    ] = "day",
    store: Annotated[str, Field(description="Name of a Store block, or an address (file://…, s3://…).")] = "default",
) -> State[Any]:
    """Sum up what all attempts of the period cost, with advice on what would have been cheaper."""
    add_tags("stage:report")
    # A run that was late, after days off, reports its own day.
    placed, now = open_store(store), flow_run.scheduled_start_time or datetime.now(UTC)
    total = publish_costs(placed, period, now)
    key = write_csv(placed, period, now)
    sentence = f"${total:,.2f} in the last {period}; {key}"
    get_run_logger().info(sentence)
    return Completed(message=sentence)


@flow(name="check-budgets", persist_result=False)
@described
def check_budgets(
    store: Annotated[str, Field(description="Name of a Store block, or an address (file://…, s3://…).")] = "default",
) -> State[Any]:
    """Compare every `Budget` block with what was spent, and send an event for each threshold that was crossed."""
    sent = send_alerts(open_store(store), datetime.now(UTC))
    for sentence in sent:
        get_run_logger().warning(sentence)
    return Completed(message=f"{len(sent)} alerts" if sent else "no new alert")


if __name__ == "__main__":
    import sys

    period: Any = sys.argv[1] if len(sys.argv) > 1 else "day"  # Prefect checks it
    cost_report(period)
