"""Budgets that running jobs look at: one that cannot be read ends no job."""

from __future__ import annotations

import pytest
from prefect.client.orchestration import get_client

from blocks.budget import Budget
from crucible.store import Store
from tasks.costs import BudgetWatch, budget_limits


@pytest.mark.usefixtures("prefect_api")
def test_a_budget_that_is_not_valid_hides_no_other_and_ends_no_job(store: Store) -> None:
    for name in ("sound", "broken"):
        Budget(usd=1.0, project="nobody", stop_jobs=True).save(name, overwrite=True)  # type: ignore[unused-coroutine]
    with get_client(sync_client=True) as client:
        document = client.read_block_document_by_name("broken", Budget.get_block_type_slug())
        client.request(
            "PATCH",
            "/block_documents/{id}",
            path_params={"id": document.id},
            json={"data": {"usd": 0}, "merge_existing_data": True},
        )
    assert "sound" in {limit.name for limit in budget_limits()}
    assert BudgetWatch(store, "nobody", "")() is None
