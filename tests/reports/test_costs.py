"""The cost report shows each budget with a bar, and how spending changes."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

from crucible.billing.budgets import BudgetLimit, BudgetState
from crucible.billing.costs import MICRO, AttemptCost
from crucible.reports.costs import budgets_table, cost_page, spent_by_day, trend

NOW = datetime(2026, 5, 20, 12, tzinfo=UTC)
WEEK = timedelta(days=7)


def cost(days_ago: float, usd: float) -> AttemptCost:
    micro = round(usd * MICRO)
    return AttemptCost(
        job="a",
        attempt=1,
        stage="train",
        pool="ec2-spot",
        instance="g5.xlarge",
        gpu="A10G",
        project="paper",
        owner="ada",
        started_at=NOW - timedelta(days=days_ago),
        end_reason="completed",
        seconds=3600,
        usd_per_hour=usd,
        micro_usd=micro,
        on_demand_micro_usd=micro,
        idle_seconds=0,
    )


def test_a_budget_has_a_bar_and_the_fullest_comes_first() -> None:
    states = [
        BudgetState(BudgetLimit("calm", 100, project="paper"), 10 * MICRO),
        BudgetState(BudgetLimit("over", 10, period="day", owner="ada", stop_jobs=True), 12 * MICRO),
    ]
    lines = budgets_table(states).splitlines()
    assert lines[2] == (
        "| **over**<br>owner ada<br>jobs stop at it | ██████████<br>120% | **$12.00**<br>of $10.00<br>this day |"
    )
    assert lines[3].startswith("| **calm**<br>project paper<br>no job starts beyond it | █░░░░░░░░░<br>10% |")


def test_the_trend_compares_with_the_period_before() -> None:
    costs = [cost(1, 3.0), cost(6.9, 1.0), cost(8, 2.0)]
    assert trend(costs, NOW - WEEK, NOW) == "$2.00 in the 7 days before: 100% more now."
    assert trend(costs[:1], NOW - WEEK, NOW) == "Nothing was spent in the 7 days before."
    assert trend([], NOW - WEEK, NOW) == ""
    by_day = spent_by_day(costs, NOW, 30)
    assert len(by_day) == 30
    assert by_day[-1][0] == NOW.date()
    assert {str(day): usd for day, usd in by_day if usd} == {"2026-05-19": 3.0, "2026-05-13": 1.0, "2026-05-12": 2.0}


def test_the_page_sums_its_own_period_and_shows_trend_and_budgets() -> None:
    state = BudgetState(BudgetLimit("paper", 100), 4 * MICRO)
    page = cost_page([cost(1, 3.0), cost(8, 2.0)], "Costs", NOW - WEEK, NOW, [state])
    assert "**$3.000000** for 1 attempt of 1 job" in page
    assert "50% more now" in page
    assert "| paper | 1.0 h<br>1 attempt | 3.000000<br>█████ 100% | 0% |" in page, "four columns fit on a telephone"
    assert page.count("data:image/png") == 1
    assert page.index("## Budgets") < page.index("## By project") < page.index("## By job")
    nothing = cost_page([], "Costs", NOW - WEEK, NOW, [])
    assert nothing == "# Costs\n\nNo attempt was running.\n"
