"""Supervisors whose jobs are in another store than the default one: their flow runs say in which.

A store is looked at while an unfinished flow run names it, and for a week after one that crashed or was cancelled: a
bucket that is not used costs nothing.
"""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Mapping
from datetime import timedelta
from typing import Any

import httpx
from prefect.client.orchestration import SyncPrefectClient, get_client
from prefect.client.schemas.filters import FlowRunFilter
from prefect.client.schemas.objects import StateType
from prefect.client.schemas.sorting import FlowRunSort
from prefect.exceptions import ObjectNotFound, PrefectException

from crucible.errors import ConfigError, CrucibleError
from crucible.jobs.records import now
from crucible.store import STORE_BLOCK, Store, default_store_uri, store_at, store_of_block
from crucible.supervision.prefect_server import server_id
from crucible.supervision.restarter import Restarter

LOOK_SECONDS = 30.0
"""Each look lists a folder of each store: on S3, about 0.01 USD a day while a job runs."""
MOST_RUNS = 200
"""Of each kind, the newest ones; the most that Prefect gives at a time."""
_UNFINISHED = [StateType.RUNNING, StateType.CANCELLING, StateType.PAUSED]
_ENDED = [StateType.CRASHED, StateType.CANCELLED]
"""For Prefect, if it notices that a supervising process died; its job may go on."""
_REMEMBERED = timedelta(days=7)

logger = logging.getLogger("crucible.restarter")


class OtherStores:
    """Restarts supervising flow runs as `Restarter` does, in each store that a flow run of this server names."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._restarters: dict[str, Restarter] = {}
        self._problems: dict[str, str] = {}

    def look(self) -> list[str]:
        """One round; returns what the restarted flow runs were working on. A store's problem is logged once."""
        try:
            server = server_id()
            found = _stores() if server else {}
        except (httpx.HTTPError, PrefectException) as error:
            self._report("the Prefect server", str(error))
            server = ""
        if not server:
            for restarter in self._restarters.values():
                restarter.forget_silence()
            return []
        self._report("the Prefect server", "")
        self._restarters = {name: one for name, one in self._restarters.items() if name in found}
        restarted = []
        for name, store in found.items():
            restarter = self._restarters.setdefault(name, Restarter(store, server, self._clock))
            try:
                restarted += restarter.look()
                self._report(store.uri, "")
            except (httpx.HTTPError, PrefectException, CrucibleError) as error:
                restarter.forget_silence()
                self._report(store.uri, str(error))
        return restarted

    def _report(self, what: str, problem: str) -> None:
        if problem and problem != self._problems.get(what):
            logger.warning("cannot look after jobs in %s: %s", what, problem)
        self._problems[what] = problem


def watch() -> None:
    """Look every half minute, for ever."""
    stores = OtherStores()
    while True:
        try:
            stores.look()
        except Exception:
            logger.exception("a look at other stores went wrong")
        time.sleep(LOOK_SECONDS)


def _stores() -> dict[str, Store]:
    """By what their fields say, so that a block with new credentials is opened anew; the default store is left out."""
    default = store_at(default_store_uri()).uri
    found: dict[str, Store] = {}
    with get_client(sync_client=True) as client:
        lately = {"end_time": {"after_": now() - _REMEMBERED}}
        runs = [
            run
            for states, when in ((_UNFINISHED, {}), (_ENDED, lately))
            for run in client.read_flow_runs(
                flow_run_filter=FlowRunFilter.model_validate({"state": {"type": {"any_": states}}, **when}),
                sort=FlowRunSort.START_TIME_DESC,
                limit=MOST_RUNS,
            )
        ]
        for reference in {str(run.parameters.get("store") or "default") for run in runs}:
            try:
                fields = _fields(client, reference)
                store = store_of_block(fields) if fields else None
            except ConfigError:  # the run said so and failed
                continue
            if store is not None and store.uri != default:
                found[str(sorted(fields.items()))] = store
    return found


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
