"""A sweep: its records, its trials, and its planner.

sweep = crucible.sweep("tune-3f2a91c0")
sweep.trials()          # a pandas DataFrame, best trial first
sweep.best().values     # {'learning_rate': 0.001, …}
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, TypeVar

from crucible.errors import ConfigError, ObjectExists, ObjectMissing
from crucible.jobs.job import Job, differences
from crucible.jobs.names import checked_job_id
from crucible.jobs.numbered import create_next, is_first_start, read_newest, record_numbers
from crucible.jobs.records import Record
from crucible.jobs.status import JobState
from crucible.store import Store
from crucible.sweeps.kinds import TrialKind, kind_of
from crucible.sweeps.leaderboard import Columns, rows
from crucible.sweeps.planner import AHEAD, START, Planner
from crucible.sweeps.records import SweepLimits, SweepSpec, SweepStatus, TrialRecord
from crucible.sweeps.sampling import Grid, make_sampler
from crucible.sweeps.schedules import make_schedule
from crucible.sweeps.searchable import Values
from crucible.sweeps.space import Space
from crucible.sweeps.trials import Trial, read_trial

if TYPE_CHECKING:
    import pandas as pd

R = TypeVar("R", bound=Record)

PARALLEL_READS = 8
LONGEST_ID = 58
"""Of a job's 63 characters five are the trial's number."""


class Sweep:
    """One sweep's records under `sweeps/<sweep_id>/` of a store."""

    def __init__(self, store: Store, sweep_id: str) -> None:
        self.sweep_id = checked_sweep_id(sweep_id)
        self.root = store
        self.store = store.child(f"sweeps/{sweep_id}")
        self._spec: SweepSpec | None = None

    def __repr__(self) -> str:
        return f"Sweep({self.sweep_id!r})"

    @classmethod
    def create(cls, store: Store, spec: SweepSpec) -> Sweep:
        """Record a new sweep, or find it there with the same spec.

        Raises `ConfigError` naming the fields that differ when the id is taken by another spec.
        """
        sweep = cls(store, spec.sweep_id)
        store.require_guarantees()
        try:
            sweep.store.create_json("sweep.json", spec.model_dump(mode="json"))
        except ObjectExists:
            before, after = (s.model_dump(mode="json", exclude={"created_at"}) for s in (sweep.read_spec(), spec))
            if differing := differences(before, after):
                raise ConfigError(
                    f"sweep: {spec.sweep_id!r} already exists with another {', '.join(differing)}; a sweep's spec "
                    f"never changes, so continue it with the same values or choose a new name"
                ) from None
        return sweep

    @classmethod
    def open(cls, store: Store, sweep_id: str) -> Sweep:
        """A sweep that exists. Raises `ConfigError` when it does not."""
        sweep = cls(store, sweep_id)
        if not sweep.exists():
            raise ConfigError(
                f"sweep: there is no sweep {sweep_id!r} in {store.uri}; `crucible sweeps ls` lists what there is"
            )
        return sweep

    @classmethod
    def ids(cls, store: Store) -> list[str]:
        """The ids of all sweeps in a store."""
        return store.folders("sweeps")

    def exists(self) -> bool:
        return self.store.exists("sweep.json")

    # Records

    def read_spec(self) -> SweepSpec:
        """What is to be searched; it never changes, so it is read once."""
        if self._spec is None:
            self._spec = self._read("sweep.json", SweepSpec)
        return self._spec

    def read_space(self) -> Space:
        """The search space of the spec."""
        return Space.parse(self.read_spec().space, self.read_kind().settings)

    def read_kind(self) -> TrialKind:
        """What the sweep's trials are."""
        return kind_of(self.read_spec())

    def read_limits(self) -> SweepLimits:
        """The limits in force: the newest that were set. Raises `ObjectMissing` before any were."""
        newest = read_newest(self.store, "limits", SweepLimits)
        if newest is None:
            raise ObjectMissing(f"{self.store.uri}/limits is empty")
        return newest

    def has_limits(self) -> bool:
        return bool(record_numbers(self.store, "limits"))

    def set_limits(self, limits: SweepLimits) -> None:
        """Change the limits; a running sweep follows within seconds."""
        if not self.has_limits() or limits != self.read_limits():
            create_next(self.store, "limits", lambda _: limits)

    def first_start(self, flow_run_id: str) -> bool:
        """Whether this flow run works on the sweep for the first time."""
        return is_first_start(self.store, flow_run_id)

    def was_started_by(self, flow_run_id: str) -> bool:
        """Whether this flow run has worked on the sweep before."""
        return self.store.exists(f"starts/{flow_run_id}.json")

    def read_status(self) -> SweepStatus | None:
        """Where its last flow run left it; None before there was one."""
        try:
            return self._read("status.json", SweepStatus)
        except ObjectMissing:
            return None

    def set_status(self, status: SweepStatus) -> None:
        self.store.write_model("status.json", status)

    def read_trial_records(self) -> list[TrialRecord]:
        """Every trial that was begun, by number."""
        keys = [f"trials/{number:04d}.json" for number in record_numbers(self.store, "trials")]
        with ThreadPoolExecutor(PARALLEL_READS, thread_name_prefix="trials") as pool:
            read = list(pool.map(lambda key: self._read(key, TrialRecord), keys))
        return sorted(read, key=lambda record: record.number)

    def record_trial(self, number: int, values: Values) -> TrialRecord:
        """Begin a trial: its values, then its job. Idempotent."""
        record = TrialRecord(number=number, values=values, job_id=f"{self.sweep_id}-{number:04d}")
        kind = self.read_kind()
        try:
            kind.check(values)
        except ConfigError as error:
            record.problem = str(error)
        try:
            self.store.create_model(f"trials/{number:04d}.json", record)
        except ObjectExists:
            record = self._read(f"trials/{number:04d}.json", TrialRecord)
        if not record.problem:
            Job.create(self.root, kind.job_spec(record))
        return record

    # What follows from them

    def planner(self) -> Planner:
        """A planner at the start of its simulation; results it is given lead to the decisions made before."""
        spec = self.read_spec()
        free_draws = spec.sampler != "tpe"
        never_waits = free_draws and (spec.schedule != "asha" or len(spec.ladder) == 1)
        sampler = make_sampler(spec.sampler, self.read_space(), spec.seed)
        most = self.read_limits().max_trials
        return Planner(
            schedule=make_schedule(spec.schedule, len(spec.ladder), spec.reduction_factor),
            sampler=sampler,
            ladder=spec.ladder,
            max_trials=min(most, len(sampler.points)) if isinstance(sampler, Grid) else most,
            workers=None if never_waits else AHEAD * spec.parallelism,
            step_cost=self._step_cost,
            start_cost=START * spec.ladder[0] * self._step_cost({}),
            ahead=spec.parallelism if free_draws and not never_waits else 0,
            known={record.number: record.values for record in self.read_trial_records()},
        )

    def job(self, number: int) -> Job:
        """The job of a trial."""
        return Job(self.root, f"{self.sweep_id}-{number:04d}")

    def read_trials(self, records: Iterable[TrialRecord] | None = None) -> list[Trial]:
        """All trials, or those of the given records, as they stand now, by number."""
        records = list(self.read_trial_records() if records is None else records)
        ladder, kind = self.read_spec().ladder, self.read_kind()
        with ThreadPoolExecutor(PARALLEL_READS, thread_name_prefix="trials") as pool:
            return list(pool.map(lambda record: read_trial(record, self.job(record.number), ladder, kind), records))

    def ranked(self) -> list[Trial]:
        """The leaderboard: trained furthest first, then by the objective; failed trials come last."""
        return sorted(self.read_trials(), key=lambda trial: trial.rank_key)

    def best(self) -> Trial | None:
        """The first of the leaderboard, once one was measured."""
        return next((trial for trial in self.ranked() if trial.losses and not trial.failure), None)

    def is_over(self) -> bool:
        """Whether nothing remains to be trained: a trial that waits at a rung then waits for good."""
        status = self.read_status()
        return status is not None and status.state is JobState.COMPLETED

    def leaderboard(self, ranked: Sequence[Trial] | None = None) -> list[dict[str, Any]]:
        """A row for each trial, best first, in plain values; of the trials given, if they are read already."""
        return rows(self.ranked() if ranked is None else ranked, self.read_columns(), self.is_over())

    def read_columns(self) -> Columns:
        """What the leaderboard shows of a trial besides where it stands."""
        return Columns(self.read_space().names, self.read_spec().objective.metric)

    def trials(self) -> pd.DataFrame:
        """The leaderboard as a table: a row for each trial, a column for each setting; empty cells where a setting was
        not searched (`when`) or something is not known yet."""
        import pandas as pd

        return pd.DataFrame(self.leaderboard(), columns=self.read_columns().all)

    def _step_cost(self, values: Values) -> float:
        try:
            return self.read_kind().step_cost(values)
        except ConfigError:
            return 1.0  # this trial fails at once

    def _read(self, key: str, kind: type[R]) -> R:
        """A record. Raises `ObjectMissing`, and `RecordDamaged` naming the object and the fix."""
        return self.store.read_model(key, kind, kind.fix)


def checked_sweep_id(sweep_id: str) -> str:
    """`sweep_id` itself. Raises `ConfigError` unless a sweep, and jobs of its trials, can have it."""
    try:
        checked_job_id(sweep_id)
    except ConfigError as error:
        raise ConfigError(str(error).replace("job:", "sweep:", 1)) from None
    if len(sweep_id) > LONGEST_ID:
        raise ConfigError(f"sweep: {sweep_id!r} is too long; use up to {LONGEST_ID} characters")
    return sweep_id
