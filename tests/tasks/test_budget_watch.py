"""A Budget block that is not valid, which the server takes from its API: running jobs go on, paid ones do not start."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from prefect.client.orchestration import get_client

from blocks.budget import Budget
from crucible.config import TrainConfig
from crucible.datasets.meta import DatasetMeta
from crucible.errors import ConfigError
from crucible.placement.choice import PlacementRequest
from crucible.store import Store
from tasks.costs import BudgetWatch, budget_limits
from tasks.placing import choose


@pytest.fixture
def broken(prefect_api: str) -> Iterator[None]:
    for name in ("sound", "broken"):
        Budget(usd=1.0, project="nobody", stop_jobs=True).save(name, overwrite=True)  # type: ignore[unused-coroutine]
    with get_client(sync_client=True) as client:
        document = client.read_block_document_by_name("broken", Budget.get_block_type_slug())
        where = {"id": document.id}
        new = {"data": {"usd": 0}, "merge_existing_data": True}
        client.request("PATCH", "/block_documents/{id}", path_params=where, json=new)
        yield
        client.request("DELETE", "/block_documents/{id}", path_params=where)


@pytest.mark.usefixtures("broken")
def test_it_hides_no_other_and_ends_no_job(store: Store) -> None:
    assert "sound" in {limit.name for limit in budget_limits()}
    assert BudgetWatch(store, "nobody", "")() is None


@pytest.mark.usefixtures("broken", "home")
def test_a_job_that_costs_money_does_not_start(store: Store, meta: DatasetMeta) -> None:
    config = TrainConfig.preset("gpt2-124m", max_iters=2000, warmup_iters=10, lr_decay_iters=2000)
    with pytest.raises(
        ConfigError, match=r"the Budget block broken is not valid \(.*usd.*\): mend it in the Prefect UI"
    ):
        choose(store, PlacementRequest(job_id="job", config=config, dataset=meta, pool="ec2-spot"))
