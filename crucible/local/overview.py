"""Keeps the overview in the Prefect UI up to date, and restarts supervisors: the process that the watchdog keeps.

    python -m crucible.supervision.watchdog crucible.local.overview

One process a server writes the overview, however many supervisors there are. A page whose reading takes long (many jobs
on S3) is made less often.
"""

from __future__ import annotations

import logging
import threading
import time
from dataclasses import replace

import httpx
from prefect.exceptions import PrefectException

from crucible.errors import StoreError
from crucible.prefect_compat.live_artifacts import LiveArtifact
from crucible.reports.overview import Overview, OverviewReader
from crucible.reports.overview_page import overview_page
from crucible.store import default_store_uri, store_at
from crucible.supervision import other_stores, restarter

KEY = "overview"
LEAST_SECONDS = 15.0
SHARE = 0.05
"""Of the time, at most, that goes into making the page."""

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


def keep_overview() -> None:
    """Read and publish, for ever."""
    reader, board = OverviewReader(store_at(default_store_uri())), OverviewBoard()
    while True:
        began = time.monotonic()
        try:
            board.publish(reader.read())
        except (httpx.HTTPError, PrefectException, StoreError, OSError) as error:
            logger.warning("the overview cannot be shown: %s", error)
        except Exception:
            logger.exception("the overview went wrong")
        took = time.monotonic() - began
        time.sleep(max(LEAST_SECONDS, took / SHARE))


def main() -> None:
    """Both, for ever; the restarter's looks wait neither for the overview nor for stores elsewhere."""
    threading.Thread(target=keep_overview, name="overview", daemon=True).start()
    threading.Thread(target=other_stores.watch, name="other-stores", daemon=True).start()
    restarter.main()


if __name__ == "__main__":
    main()
