"""A sweep in the Prefect UI: the leaderboard as a table that grows, and a page with pictures and the best config."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from uuid import UUID

from prefect.artifacts import create_markdown_artifact, create_table_artifact
from prefect.client.orchestration import get_client
from prefect.client.schemas.actions import ArtifactUpdate

from crucible.errors import StoreError
from crucible.reports.sweep import MOST_ROWS, Curves, sweep_report
from crucible.sweeps.sweep import Sweep
from crucible.sweeps.trials import Trial
from tasks.observing import UNAVAILABLE, add_tags
from tasks.reporting import artifact_key

LEAST_SECONDS = 15.0
SHARE = 0.05
"""Of the time since the start: a long sweep is drawn less often, so that its history stays small."""


class SweepBoard:
    """Publishes a sweep under two constant keys; each artifact is made once and then updated."""

    def __init__(self, sweep: Sweep, clock: Callable[[], float] = time.monotonic) -> None:
        self._sweep, self._clock = sweep, clock
        self._curves = Curves(sweep)
        self._began, self._next = clock(), 0.0
        self._table: UUID | None = None
        self._page: UUID | None = None

    @property
    def due(self) -> bool:
        return self._clock() >= self._next

    def publish(self, trials: Sequence[Trial]) -> None:
        """Show the trials as they are. Whatever the server refuses is left out: the records have it."""
        ranked = sorted(trials, key=lambda trial: trial.rank_key)
        with suppress(*UNAVAILABLE, StoreError):
            self._show(ranked)
        cost = sum(trial.cost_usd for trial in trials)
        add_tags(f"trials:{len(trials)}", f"cost-usd:{cost:.2f}", replacing=("trials:", "cost-usd:"))
        self._next = self._clock() + max(LEAST_SECONDS, SHARE * (self._clock() - self._began))

    def _show(self, ranked: Sequence[Trial]) -> None:
        name = self._sweep.sweep_id
        table = self._sweep.leaderboard(ranked[:MOST_ROWS])
        page = sweep_report(self._sweep, ranked, self._curves)
        if self._table is None or self._page is None:
            self._table = _made(
                create_table_artifact(table, artifact_key("leaderboard", name), f"Leaderboard of sweep {name}")
            )
            self._page = _made(create_markdown_artifact(page, artifact_key("sweep", name), f"Report of sweep {name}"))
            return
        with get_client(sync_client=True) as client:
            client.update_artifact(self._table, ArtifactUpdate(data=json.dumps(table)))
            client.update_artifact(self._page, ArtifactUpdate(data=page))


def _made(created: object) -> UUID | None:
    return created if isinstance(created, UUID) else None
