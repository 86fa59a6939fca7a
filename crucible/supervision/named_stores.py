"""The stores besides the default one that flow runs of this Prefect server name: Store blocks, and addresses."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from datetime import timedelta
from typing import Any

from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound

from crucible.errors import ConfigError
from crucible.jobs.records import now
from crucible.store import STORE_BLOCK, Store, default_store_uri, store_at, store_of_block

__all__ = ["ENDED", "ENDED_ABRUPTLY", "UNFINISHED", "named_stores"]

UNFINISHED = (StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED)
ENDED_ABRUPTLY = (StateType.CRASHED, StateType.CANCELLED)
"""For Prefect, if it notices that a supervising process died; its job may go on."""
ENDED = (StateType.COMPLETED, StateType.FAILED)

MOST_RUNS = 200
"""Of each kind, the newest ones; the most that Prefect gives at a time."""
_REMEMBERED = timedelta(days=7)
"""How long a run that has ended counts: a bucket that is no longer used costs nothing."""


def named_stores(*kinds: Iterable[StateType]) -> dict[str, Store]:
    """The stores of the flow runs whose state is of one of these kinds, ended runs for a week.

    By what their fields say, so that a block with new credentials is opened anew. A reference that nothing can be
    found for is left out: the run said so and failed. Raises what the Prefect client raises.
    """
    default = store_at(default_store_uri()).uri
    found: dict[str, Store] = {}
    with get_client(sync_client=True) as client:
        references = {reference for states in kinds for reference in _references(client, states)}
        for reference in sorted(references):
            try:
                fields = _fields(client, reference)
                store = store_of_block(fields) if fields else None
            except ConfigError:
                continue
            if store is not None and store.uri != default:
                found[str(sorted(fields.items()))] = store
    return found


def _references(client: SyncPrefectClient, states: Iterable[StateType]) -> set[str]:
    chosen = set(states)
    when = {} if chosen <= set(UNFINISHED) else {"end_time": {"after_": now() - _REMEMBERED}}
    runs = client.read_flow_runs(
        flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": list(chosen)}}, **when}),
        sort=FlowRunSort.START_TIME_DESC,
        limit=MOST_RUNS,
    )
    return {str(run.parameters.get("store") or "default") for run in runs}


def _fields(client: SyncPrefectClient, reference: str) -> Mapping[str, Any]:
    """Of a Store block; of an address, too. Empty where there is no such block, and for the default store."""
    if reference == "default" and os.environ.get("CRUCIBLE_STORE"):
        return {}
    if "://" in reference or reference.startswith("/"):
        return {"root": reference}
    try:
        return client.read_block_document_by_name(reference, STORE_BLOCK, include_secrets=True).data
    except ObjectNotFound:
        return {}
