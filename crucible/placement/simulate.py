"""Replays deadline policies over recorded spot availability: what each would have paid, and how often it was late.

A trace is a JSON file in the format of the public SkyPilot spot traces: `metadata.gap_seconds` is the spacing and
`data[i]` the number of spot machines available at tick i (github.com/skypilot-org/spot-traces).
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from crucible.errors import ConfigError, DataError
from crucible.placement.lookahead import lookahead
from crucible.placement.omniscient import least_cost
from crucible.placement.policies import (
    ON_DEMAND,
    SPOT,
    WAIT,
    DeadlineJob,
    Policy,
    Rule,
    Seen,
    greedy,
    on_demand,
    uniform_progress,
)

POLICIES: dict[str, Policy] = {
    "on-demand": on_demand,
    "greedy": greedy,
    "uniform-progress": uniform_progress,
    "crucible": lookahead,
}
OMNISCIENT = "omniscient"


@dataclass(frozen=True)
class Trace:
    """Spot availability of one machine type in one zone, one entry per tick."""

    name: str
    tick_seconds: float
    available: NDArray[np.bool_]


@dataclass(frozen=True)
class Outcome:
    """What became of each simulated run: cost in seconds of spot price, finish time, machines started."""

    cost: NDArray[np.float64]
    finish_seconds: NDArray[np.float64]
    starts: NDArray[np.int64]


@dataclass(frozen=True)
class Row:
    """Mean over the start points of one trace. Cost 1.0 is the whole job on demand; missed counts late runs."""

    trace: str
    policy: str
    deadline_ratio: float
    cost: float
    missed: int

    def to_dict(self) -> dict[str, str | float | int]:
        return asdict(self)


def load_traces(folder: Path) -> list[Trace]:
    """Every trace below the folder, by name.

    Raises:
        DataError: no such folder, no JSON file in it, or a file that is not a trace.
    """
    try:
        files = sorted(folder.rglob("*.json")) if folder.is_dir() else []
    except OSError as error:
        raise DataError(f"the folder of spot traces cannot be read: {error}") from error
    if not files:
        raise DataError(f"no spot trace (*.json) below {folder}: give the folder that holds the traces")
    return [_load_trace(file, folder) for file in files]


def _load_trace(file: Path, folder: Path) -> Trace:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        gap = float(content["metadata"]["gap_seconds"])
        counts = np.asarray(content["data"], dtype=np.float64)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise DataError(
            f"{file} is not a spot trace: it needs metadata.gap_seconds and a list data ({error!r})"
        ) from error
    if counts.ndim != 1 or counts.size == 0 or not np.isfinite(counts).all() or not 0 < gap < math.inf:
        raise DataError(f"{file} is not a spot trace: data must be a list of numbers and gap_seconds > 0")
    return Trace(file.relative_to(folder).with_suffix("").as_posix(), gap, counts > 0)


def run_policy(spot_available: NDArray[np.bool_], job: DeadlineJob, rule: Rule) -> Outcome:
    """Let a rule decide for many runs at once.

    `spot_available` is [runs, ticks], from each run's start to its deadline; after it there is no more spot. A rule
    sees one column at a time, and waits if it chooses spot that is not available. The last tick of a job is paid for
    only as far as it is needed.
    """
    runs, ticks = spot_available.shape
    tick = job.tick_seconds
    done = np.zeros(runs)
    warming = np.zeros(runs)  # seconds of changeover still to come
    cost = np.zeros(runs)
    finish = np.full(runs, np.inf)
    starts = np.zeros(runs, dtype=np.int64)
    running = np.full(runs, WAIT, dtype=np.int8)
    age = np.zeros(runs)
    before = spot_available[:, 0]
    last_tick = ticks + math.ceil((job.work_seconds + job.changeover_seconds) / tick) + 1  # for policies that are late

    for index in range(last_tick):
        available = spot_available[:, index] if index < ticks else np.zeros(runs, dtype=np.bool_)
        age = np.where(available == before, age + tick * (index > 0), 0.0)
        running = np.where((running == SPOT) & ~available, WAIT, running).astype(np.int8)
        choice = rule(Seen(index * tick, done, running, available, age))
        working = np.isinf(finish)
        choice = np.where(working & ~((choice == SPOT) & ~available), choice, WAIT).astype(np.int8)
        started = (choice != running) & (choice != WAIT)
        starts += started
        warming = np.where(started, job.changeover_seconds, np.where(choice == WAIT, 0.0, warming))
        spent = np.where(choice == WAIT, 0.0, np.minimum(tick, warming + job.work_seconds - done))
        cost += spent * np.where(choice == ON_DEMAND, job.on_demand_ratio, 1.0)
        warmed = np.minimum(warming, spent)
        warming, done = warming - warmed, done + spent - warmed
        finish = np.where(working & (done >= job.work_seconds - 1e-6), index * tick + spent, finish)
        running, before = choice, available
        if not np.isinf(finish).any():
            break
    return Outcome(cost, finish, starts)


def simulate(
    traces: Sequence[Trace],
    job_hours: float,
    on_demand_ratio: float,
    changeover_hours: float,
    deadline_ratios: Sequence[float],
    start_every_hours: float = 7.0,
    policies: dict[str, Policy] = POLICIES,
    progress: Callable[[str], None] = lambda message: None,
) -> list[Row]:
    """Every policy and the omniscient bound, at every deadline, over every trace.

    Runs start every `start_every_hours` (7, so that every hour of the day occurs) as long as the deadline lies within
    the trace.

    Raises:
        ConfigError: a value out of range, a deadline that on-demand cannot meet, a trace shorter than the deadline.
    """
    _require_positive(job_hours=job_hours, start_every_hours=start_every_hours)
    rows: list[Row] = []
    for ratio in deadline_ratios:
        for trace_tick in sorted({trace.tick_seconds for trace in traces}):
            work = job_hours * 3600
            job = DeadlineJob(work, work * ratio, changeover_hours * 3600, on_demand_ratio, trace_tick)
            if not job.feasible:
                needed = 1 + changeover_hours / job_hours
                raise ConfigError(
                    f"deadline_ratios has {ratio}: not even on-demand can meet it; take {needed:.4g} or more"
                )
            group = [trace for trace in traces if trace.tick_seconds == trace_tick]
            windows = [_windows(trace, job, start_every_hours) for trace in group]
            rows += _rows(group, windows, job, ratio, policies, progress)
    return rows


def _rows(
    traces: list[Trace],
    windows: list[NDArray[np.bool_]],
    job: DeadlineJob,
    ratio: float,
    policies: dict[str, Policy],
    progress: Callable[[str], None],
) -> list[Row]:
    """All traces of one tick length go through a policy together: the arrays are long and the ticks few."""
    whole_on_demand = (job.work_seconds + job.changeover_seconds) * job.on_demand_ratio
    bounds = np.cumsum([0, *(len(window) for window in windows)])
    stacked = np.concatenate(windows)
    rows: list[Row] = []
    for name, policy in policies.items():
        progress(f"deadline {ratio} x the job: {name}, {len(stacked)} runs")
        outcome = run_policy(stacked, job, policy(job))
        late = outcome.finish_seconds > job.deadline_seconds + 1e-6
        for trace, first, last in zip(traces, bounds[:-1], bounds[1:], strict=True):
            cost = float(outcome.cost[first:last].mean()) / whole_on_demand
            rows.append(Row(trace.name, name, ratio, cost, int(late[first:last].sum())))
    progress(f"deadline {ratio} x the job: {OMNISCIENT}, {len(stacked)} runs")
    for trace, window in zip(traces, windows, strict=True):
        cost = float(np.mean([least_cost(run, job) for run in window])) / whole_on_demand
        rows.append(Row(trace.name, OMNISCIENT, ratio, cost, 0))
    return rows


def _windows(trace: Trace, job: DeadlineJob, start_every_hours: float) -> NDArray[np.bool_]:
    """[runs, ticks]: what each run of the job would see of the trace until its deadline."""
    ticks = math.ceil(job.deadline_seconds / trace.tick_seconds - 1e-9)
    if ticks > len(trace.available):
        hours = len(trace.available) * trace.tick_seconds / 3600
        raise ConfigError(
            f"trace {trace.name} is {hours:.1f} h long, shorter than the deadline of "
            f"{job.deadline_seconds / 3600:.1f} h: take a shorter job or smaller deadline ratios"
        )
    stride = max(1, round(start_every_hours * 3600 / trace.tick_seconds))
    return np.lib.stride_tricks.sliding_window_view(trace.available, ticks)[::stride]


def _require_positive(**values: float) -> None:
    for name, value in values.items():
        if not 0 < value < math.inf:
            raise ConfigError(f"{name} is {value}: it must be a number > 0")


@dataclass(frozen=True)
class Summary:
    """One policy at one deadline, mean over the traces; `excess` is its cost above the omniscient bound."""

    policy: str
    deadline_ratio: float
    cost: float
    excess: float
    missed: int


def summarise(rows: Sequence[Row]) -> list[Summary]:
    """Every trace weighs the same."""
    summaries = []
    for ratio in dict.fromkeys(row.deadline_ratio for row in rows):
        here = [row for row in rows if row.deadline_ratio == ratio]
        bound = float(np.mean([row.cost for row in here if row.policy == OMNISCIENT]))
        for policy in dict.fromkeys(row.policy for row in here):
            cost = float(np.mean([row.cost for row in here if row.policy == policy]))
            missed = sum(row.missed for row in here if row.policy == policy)
            summaries.append(Summary(policy, ratio, cost, cost - bound, missed))
    return summaries
