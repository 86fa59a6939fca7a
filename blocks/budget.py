"""The block that limits what a project or an owner may spend."""

from __future__ import annotations

from typing import Literal

from prefect.blocks.core import Block
from pydantic import Field

from crucible.billing.budgets import BudgetLimit


class Budget(Block):
    """A sum per day or month. `check-budgets` sends an event at 50, 80 and 100 per cent; no job starts beyond it."""

    _block_type_name = "Crucible Budget"
    _block_type_slug = "crucible-budget"
    _description = "How much a project or an owner may spend per day or month."
    _code_example = """
    ```python
    from blocks.budget import Budget

    Budget(usd=200, period="month", project="nanogpt").save("nanogpt-monthly")
    ```
    """

    usd: float = Field(gt=0, title="USD", description="The most that may be spent per period.")
    period: Literal["day", "month"] = Field("month", description="Calendar day or month, in UTC.")
    project: str = Field("", description="Only this project counts. Empty: all.")
    owner: str = Field("", description="Only what this owner started counts. Empty: all.")

    stop_jobs: bool = Field(
        False, title="Stop jobs", description="Running jobs save and stop when it is used up; they can be continued."
    )

    def limit(self, name: str) -> BudgetLimit:
        """The budget as the library uses it; `name` is the name of the saved block."""
        return BudgetLimit(
            name=name,
            usd=self.usd,
            period=self.period,
            project=self.project,
            owner=self.owner,
            stop_jobs=self.stop_jobs,
        )
