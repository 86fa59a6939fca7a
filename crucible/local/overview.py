"""Keeps the overview in the Prefect UI up to date, and restarts supervisors: the process that the watchdog keeps.

    python -m crucible.supervision.watchdog crucible.local.overview

One process a server writes the overview, however many supervisors there are. It shows the default store, and those that
flow runs of this server name. A store whose reading takes long (many jobs on S3) is read less often; one that nothing
runs in is read once and costs nothing more.
"""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import httpx
from prefect.exceptions import PrefectException

from crucible.errors import CrucibleError, StoreError
from crucible.prefect_compat.live_artifacts import LiveArtifact
from crucible.reports.overview import Overview, OverviewReader, overview_of_all
from crucible.reports.overview_page import overview_page
from crucible.store import Store, default_store_uri, store_at
from crucible.supervision import other_stores, restarter
from crucible.supervision.named_stores import ENDED, ENDED_ABRUPTLY, UNFINISHED, named_stores

KEY = "overview"
LEAST_SECONDS = 15.0
SHARE = 0.05
"""Of the time, at most, that goes into reading a store."""

logger = logging.getLogger("crucible.overview")


class OverviewBoard:
    """Publishes overviews, each only if something in it has changed but the time of day."""

    def __init__(self) -> None:
        self._artifact = LiveArtifact(KEY, "markdown")
        self._shown: Overview | None = None

    def publish(self, overview: Overview) -> bool:
        """Whether there was something new to show. Raises what the Prefect client raises."""
        if self._shown is not None and replace(overview, at=self._shown.at) == self._shown:
            return False
        self._artifact.publish(overview_page(overview), "All jobs and sweeps: where they stand, and what needs you")
        self._shown = overview
        return True


@dataclass
class _Reading:
    """One store besides the default one."""

    reader: OverviewReader
    found: Overview
    stale: bool = True
    """Whether something may have changed since it was read."""
    next_at: float = 0.0


class Elsewhere:
    """Overviews of the stores that flow runs of this server name, besides the default one."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._readings: dict[str, _Reading] = {}
        self.overviews: list[Overview] = []
        """The newest of each store: replaced, never changed. What cannot be read says so in `damaged`."""

    def look(self) -> None:
        """Read those in which something runs, and once more what has ended. Raises what the Prefect client raises."""
        running = named_stores(UNFINISHED)
        named = {**named_stores(ENDED, ENDED_ABRUPTLY), **running}
        self._readings = {name: one for name, one in self._readings.items() if name in named}
        for name, store in named.items():
            reading = self._readings.setdefault(name, _Reading(OverviewReader(store), Overview([], [], 0)))
            reading.stale |= name in running
            if reading.stale and self._clock() >= reading.next_at:
                reading.stale = not self._read(reading, store) or name in running
        self.overviews = [reading.found for reading in self._readings.values()]

    def _read(self, reading: _Reading, store: Store) -> bool:
        began = self._clock()
        problem = ""
        try:
            reading.found = reading.reader.read()
        except (CrucibleError, OSError) as error:
            problem = f"{store.uri}: {error}"
            reading.found = replace(reading.found, damaged=[problem])
        reading.next_at = self._clock() + _pause(self._clock() - began)
        return not problem


def keep_overview() -> None:
    """Read and publish, for ever."""
    reader, board, elsewhere = OverviewReader(store_at(default_store_uri())), OverviewBoard(), Elsewhere()
    threading.Thread(target=_keep_looking, args=(elsewhere,), name="overview-elsewhere", daemon=True).start()
    while True:
        began = time.monotonic()
        try:
            board.publish(overview_of_all([reader.read(), *elsewhere.overviews]))
        except (httpx.HTTPError, PrefectException, StoreError, OSError) as error:
            logger.warning("the overview cannot be shown: %s", error)
        except Exception:
            logger.exception("the overview went wrong")
        time.sleep(_pause(time.monotonic() - began))


def _keep_looking(elsewhere: Elsewhere) -> None:
    """A store that does not answer holds up no page."""
    while True:
        try:
            elsewhere.look()
        except (httpx.HTTPError, PrefectException) as error:
            logger.warning("the overview has no news of other stores: %s", error)
        except Exception:
            logger.exception("the overview of other stores went wrong")
        time.sleep(LEAST_SECONDS)


def _pause(seconds: float) -> float:
    """After a reading that took so long."""
    return max(LEAST_SECONDS, seconds / SHARE)


def main() -> None:
    """Both, for ever; the restarter's looks wait neither for the overview nor for stores elsewhere."""
    threading.Thread(target=keep_overview, name="overview", daemon=True).start()
    threading.Thread(target=other_stores.watch, name="other-stores", daemon=True).start()
    restarter.main()


if __name__ == "__main__":
    main()
