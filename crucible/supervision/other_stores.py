"""Supervisors whose jobs are in another store than the default one: their flow runs say in which.

A store is looked at while an unfinished flow run names it, and for a week after one that crashed or was cancelled: a
bucket that is not used costs nothing.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable

import httpx
from prefect.exceptions import PrefectException

from crucible.errors import CrucibleError
from crucible.supervision.named_stores import ENDED_ABRUPTLY, UNFINISHED, named_stores
from crucible.supervision.prefect_server import server_id
from crucible.supervision.restarter import Restarter

LOOK_SECONDS = 30.0
"""Each look lists a folder of each store: on S3, about 0.01 USD a day while a job runs."""

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
            found = named_stores(UNFINISHED, ENDED_ABRUPTLY) if server else {}
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
