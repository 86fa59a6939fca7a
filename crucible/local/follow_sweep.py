"""Follow a search to its end: its progress, from its trials' records and from Prefect."""

from __future__ import annotations

import time
from collections.abc import Iterator
from dataclasses import dataclass

import httpx

from crucible.local.follow import FINAL, read_states
from crucible.store import Store
from crucible.sweeps.sweep import Sweep
from crucible.sweeps.trials import Trial, best_trial

LOOK_SECONDS = 1.0


@dataclass(frozen=True)
class SweepStanding:
    """Where a search is at one moment."""

    state: str
    """As `RunState.kind`."""
    message: str
    progress: str
    """How many trials there are, and the best of them, as people read it."""
    unanswered: str = ""
    """As in `RunState`. The trials' records are current all the same."""


def follow_sweep(api: httpx.Client, flow_run_id: str, store: Store, sweep_id: str) -> Iterator[SweepStanding]:
    """Where the search stands, again and again until it has ended; the last one is final.

    Goes on while the server does not answer; raises `ServiceError` when it refuses.
    """
    sweep = Sweep(store, sweep_id)
    for state, message, unanswered in read_states(api, flow_run_id):
        trials = sweep.read_trials() if sweep.exists() else []
        yield SweepStanding(state, message, _progress(state, trials), unanswered)
        if state not in FINAL:
            time.sleep(LOOK_SECONDS)


def _progress(state: str, trials: list[Trial]) -> str:
    if not trials:
        return "waiting for the worker" if state in ("", "SCHEDULED", "PENDING") else "preparing"
    running = sum(trial.state == "running" for trial in trials)
    parts = [f"{len(trials)} trials, {running} running"]
    if failed := sum(bool(trial.failure) for trial in trials):
        parts.append(f"{failed} failed")
    best = best_trial(trials)
    if best is not None:
        parts.append(f"best: trial {best.number}, {best.objective.label} {best.value:.4g} at step {best.shown_step:,}")
    return ", ".join(parts)
