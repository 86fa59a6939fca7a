"""The attempt that a flow run is, and its store, as a worker reaches them."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from prefect.client.schemas.objects import FlowRun
from prefect.exceptions import ObjectNotFound

from crucible.errors import ConfigError
from crucible.jobs.job import Attempt, Job
from crucible.pools.common.api_retry import retry_while_away
from crucible.store import STORE_BLOCK, Store, store_at, store_of_block

if TYPE_CHECKING:
    from prefect.workers.base import BaseWorker


async def store_of(
    worker: BaseWorker[Any, Any, Any], flow_run: FlowRun, environment: Mapping[str, str | None]
) -> Store | None:
    """The store that a flow run works on; None for one that works on none.

    `environment`: of the machine; its `CRUCIBLE_STORE` is the store that is meant by "default".
    Raises `ConfigError` for a block that is not there or an address that is none.
    """
    if not {"job", "store"} & flow_run.parameters.keys():
        return None
    reference = str(flow_run.parameters.get("store", "default"))
    if "://" in reference or reference.startswith("/"):
        return store_at(reference)
    if reference == "default" and (address := environment.get("CRUCIBLE_STORE")):
        return store_at(address)
    try:
        document = await retry_while_away(
            lambda: worker.client.read_block_document_by_name(reference, STORE_BLOCK, include_secrets=True)
        )
    except ObjectNotFound:
        raise ConfigError(f"store = {reference!r}: the Prefect server has no store of that name") from None
    return store_of_block(document.data)


async def attempt_of(
    worker: BaseWorker[Any, Any, Any], flow_run: FlowRun, environment: Mapping[str, str | None]
) -> Attempt | None:
    """The attempt that a flow run is; None for every other flow run. Raises `CrucibleError` if it cannot be opened."""
    given = flow_run.parameters
    store = await store_of(worker, flow_run, environment)
    if store is None or "job" not in given or not str(given.get("attempt", "")).isdecimal():
        return None
    job = await asyncio.to_thread(Job.open, store, str(given["job"]))
    return job.attempt(int(given["attempt"]))
