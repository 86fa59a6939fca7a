"""A sweep in the Prefect UI: the leaderboard as a table that grows, and a page with pictures and the best config."""

from __future__ import annotations

import time
from collections.abc import Sequence
from contextlib import suppress
from typing import Any

from crucible.errors import StoreError
from crucible.prefect_compat.live_artifacts import LiveArtifact
from crucible.reports.sweep import MOST_ROWS, Curves, sweep_report
from crucible.sweeps.sweep import Sweep
from crucible.sweeps.trials import Trial
from tasks.observing import UNAVAILABLE, add_tags
from tasks.reporting import artifact_key

LEAST_SECONDS = 15.0
SHARE = 0.05
"""Of the time since the start: a long sweep is drawn less often, so that its history stays small."""


class SweepBoard:
    """Publishes a sweep under two constant keys; of each artifact there is one version."""

    def __init__(self, sweep: Sweep) -> None:
        self._sweep = sweep
        self._curves = Curves(sweep)
        self._began, self._next = time.monotonic(), 0.0
        self._table = LiveArtifact(artifact_key("leaderboard", sweep.sweep_id), "table")
        self._page = LiveArtifact(artifact_key("sweep", sweep.sweep_id), "markdown")

    @property
    def due(self) -> bool:
        return time.monotonic() >= self._next

    def publish(self, trials: Sequence[Trial]) -> None:
        """Show the trials as they are. Whatever the server refuses is left out: the records have it."""
        ranked = sorted(trials, key=lambda trial: trial.rank_key)
        with suppress(*UNAVAILABLE, StoreError):
            self._show(ranked)
        cost = sum(trial.cost_usd for trial in trials)
        add_tags(f"trials:{len(trials)}", f"cost-usd:{cost:.2f}", replacing=("trials:", "cost-usd:"))
        self._next = time.monotonic() + max(LEAST_SECONDS, SHARE * (time.monotonic() - self._began))

    def _show(self, ranked: Sequence[Trial]) -> None:
        rows = [
            {name: _short(value) for name, value in row.items()} for row in self._sweep.leaderboard(ranked[:MOST_ROWS])
        ]
        self._table.publish(rows, f"Leaderboard of sweep {self._sweep.sweep_id}")
        page = sweep_report(self._sweep, ranked, self._curves)
        self._page.publish(page, f"Report of sweep {self._sweep.sweep_id}")


def _short(value: Any) -> Any:
    """Numbers for the eye, so that more columns fit; the records and `crucible sweeps show --json` have every digit."""
    return float(f"{value:.5g}") if isinstance(value, float) else value
