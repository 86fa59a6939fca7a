"""The leaderboard in plain values: for tables, JSON, CSV and DataFrames."""

from __future__ import annotations

import csv
import hashlib
import io
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from crucible.sweeps.trials import Trial

_BEFORE = ("rank", "trial")
_AFTER = ("state", "cost_usd", "seconds", "attempts", "failure", "job")
_APART = {"cost_usd", "seconds", "attempts", "failure", "job"}
"""What depends on how often a trial was interrupted (the message of a failure does), or on the sweep's name."""


@dataclass(frozen=True)
class Columns:
    """What was searched, and the metric that decides."""

    settings: Sequence[str]
    metric: str

    @property
    def all(self) -> list[str]:
        """The table's columns: rank and number, what was searched, what came out."""
        return [*_BEFORE, *self.settings, "step", self.metric, *_AFTER]


def rows(ranked: Sequence[Trial], columns: Columns, over: bool) -> list[dict[str, Any]]:
    """A row for each trial, in the order given; settings that a trial does not have are None.

    `over` says whether the sweep has completed (`Sweep.is_over`).
    """
    return [_row(place, trial, columns, over) for place, trial in enumerate(ranked, start=1)]


def state_label(trial: Trial, over: bool) -> str:
    """The trial's state as people read it."""
    return "stopped early" if over and trial.state == "waiting" else trial.state


def digest(rows_: Sequence[dict[str, Any]]) -> str:
    """sha256 of what no interruption may change: ranks, values, steps, losses to the last bit, states."""
    kept = [{name: value for name, value in row.items() if name not in _APART} for row in rows_]
    return hashlib.sha256(json.dumps(kept, sort_keys=True).encode()).hexdigest()


def as_csv(rows_: Sequence[dict[str, Any]], columns: Columns) -> str:
    """The leaderboard as CSV with a line of headings."""
    text = io.StringIO()
    writer = csv.DictWriter(text, columns.all, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows_)
    return text.getvalue()


def _row(rank: int, trial: Trial, columns: Columns, over: bool) -> dict[str, Any]:
    return {
        "rank": rank,
        "trial": trial.number,
        **{name: trial.values.get(name) for name in columns.settings},
        "step": trial.shown_step,
        columns.metric: trial.value,
        "state": state_label(trial, over),
        "cost_usd": round(trial.cost_usd, 6),
        "seconds": round(trial.seconds, 1),
        "attempts": trial.attempts,
        "failure": trial.failure,
        "job": trial.job_id,
    }
