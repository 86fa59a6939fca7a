"""All jobs and sweeps of some stores at a glance: where each stands, what it costs, which of them need a person."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field
from datetime import datetime, timedelta
from typing import Any, TypeVar

from crucible.billing.costs import sweep_of
from crucible.errors import ConfigError, ObjectMissing, RecordDamaged
from crucible.jobs.job import Job
from crucible.jobs.records import EndReason, now
from crucible.jobs.stage_records import stage_name
from crucible.jobs.status import JobState, JobStatus, status_of
from crucible.reports.curve import SmallCurve
from crucible.reports.summary import AttemptSummary, JobSummary, summarise
from crucible.store import Store, store_option
from crucible.supervision.heartbeat import supervisor_heartbeats
from crucible.sweeps.sweep import Sweep

PARALLEL_READS = 8
RECENT_DAYS = 7.0
"""What ended longer ago is no news: `crucible jobs ls` has it."""
LONG_WAIT_SECONDS = 900.0
"""For a machine; then a person should look why."""
Point = tuple[float, float]


@dataclass(frozen=True)
class JobLine:
    """One job."""

    job: str
    state: JobState | None
    """None before a supervisor took it up."""
    activity: str
    """What it is doing or how it ended, in a few words."""
    why: str
    """Why it is where it is."""
    needs: str
    """What a person has to do; empty if nothing."""
    pool: str
    instance: str
    attempts: int
    step: int
    total_steps: int | None
    loss: float | None
    """Validation loss, or training loss where there is none."""
    loss_name: str
    curve: Sequence[Point]
    cost_usd: float
    cost_left_usd: float | None
    max_cost_usd: float | None
    seconds_left: float | None
    seconds: float
    project: str
    owner: str
    store: str
    """Its address; empty for the default store."""
    at: datetime
    """Of its last change of state."""

    @property
    def running(self) -> bool:
        return self.state is JobState.RUNNING

    @property
    def share(self) -> float | None:
        """How much of its steps is done, from 0 to 1."""
        return min(1.0, self.step / self.total_steps) if self.total_steps else None


@dataclass(frozen=True)
class SweepLine:
    """One sweep; its trials are jobs, and are not listed on their own."""

    sweep: str
    state: JobState | None
    why: str
    needs: str
    trials: int
    max_trials: int | None
    done: int
    failed: int
    best: float | None
    metric: str
    best_trial: int | None
    pool: str
    cost_usd: float
    max_cost_usd: float | None
    store: str
    """Its address; empty for the default store."""
    at: datetime

    @property
    def running(self) -> bool:
        return self.state is JobState.RUNNING


L = TypeVar("L", JobLine, SweepLine)


@dataclass(frozen=True)
class Overview:
    """All of it at one moment; running ones first, then the newest."""

    jobs: Sequence[JobLine]
    sweeps: Sequence[SweepLine]
    older: int
    """Jobs and sweeps that ended longer ago and are not listed."""
    damaged: Sequence[str] = ()
    """What could not be read, and what to do about it."""
    at: datetime = field(default_factory=now)

    @property
    def running(self) -> bool:
        """Whether anything does."""
        return any(line.running for line in self.jobs) or any(line.running for line in self.sweeps)

    @property
    def cost_usd(self) -> float:
        """What everything that is listed has cost so far."""
        return sum(line.cost_usd for line in self.jobs) + sum(line.cost_usd for line in self.sweeps)

    @property
    def cost_left_usd(self) -> float:
        """What the running jobs will likely still cost, as far as that is known."""
        return sum(line.cost_left_usd or 0.0 for line in self.jobs if line.running)

    @property
    def needing(self) -> list[tuple[str, str]]:
        """Names and what a person has to do."""
        jobs = [(line.job, line.needs) for line in self.jobs if line.needs]
        return jobs + [(line.sweep, line.needs) for line in self.sweeps if line.needs]

    def as_json(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "at": self.at.isoformat(),
            "cost_usd": self.cost_usd,
            "cost_left_usd": self.cost_left_usd,
            "jobs": [{**asdict(line), "at": line.at.isoformat()} for line in self.jobs],
            "sweeps": [{**asdict(line), "at": line.at.isoformat()} for line in self.sweeps],
            "older": self.older,
            "damaged": list(self.damaged),
        }


def overview_of_all(overviews: Sequence[Overview]) -> Overview:
    """One overview of several stores, as of the newest of them."""
    return Overview(
        jobs=sorted((line for one in overviews for line in one.jobs), key=_order),
        sweeps=sorted((line for one in overviews for line in one.sweeps), key=_order),
        older=sum(one.older for one in overviews),
        damaged=[what for one in overviews for what in one.damaged],
        at=max(one.at for one in overviews),
    )


@dataclass
class OverviewReader:
    """Reads overviews of one store. Kept for the life of a process, it reads what has ended only once.

    Something that has ended can only change if somebody supervises it again, which its heartbeat shows.
    """

    store: Store
    clock: Callable[[], datetime] = now
    _jobs: dict[str, JobLine | None] = field(default_factory=dict, init=False)
    """What has ended; None for those that did so long ago."""
    _sweeps: dict[str, SweepLine | None] = field(default_factory=dict, init=False)
    _curves: dict[str, SmallCurve] = field(default_factory=dict, init=False)

    def read(self) -> Overview:
        """Look now. Raises what the store raises."""
        supervised = {record.subject for record in supervisor_heartbeats(self.store)}
        sweeps = Sweep.ids(self.store)
        known = set(sweeps)
        jobs = [name for name in Job.ids(self.store) if not sweep_of(name, known)]
        damaged: list[str] = []
        job_lines = self._read_all(jobs, self._jobs, supervised, self._read_job, damaged)
        sweep_lines = self._read_all(sweeps, self._sweeps, supervised, self._read_sweep, damaged)
        self._curves = {name: curve for name, curve in self._curves.items() if name not in self._jobs}
        listed = [*job_lines, *sweep_lines]
        return Overview(
            jobs=sorted(job_lines, key=_order),
            sweeps=sorted(sweep_lines, key=_order),
            older=len(jobs) + len(sweeps) - len(listed) - len(damaged),
            damaged=damaged,
            at=self.clock(),
        )

    def _read_all(
        self,
        names: Iterable[str],
        ended: dict[str, L | None],
        supervised: set[str],
        read: Callable[[str, set[str]], L | None],
        damaged: list[str],
    ) -> list[L]:
        recent = self.clock() - timedelta(days=RECENT_DAYS)
        names = list(names)
        stages = tuple(stage_name(subject, "") for subject in supervised)  # their names begin so
        wanted = [name for name in names if name not in ended or name in supervised or name.startswith(stages)]
        found: dict[str, L | None] = {}

        def look(name: str) -> None:
            try:
                found[name] = read(name, supervised)
            except (RecordDamaged, ObjectMissing, ConfigError) as error:
                damaged.append(f"{name}: {error}")

        with ThreadPoolExecutor(PARALLEL_READS, thread_name_prefix="overview") as pool:
            list(pool.map(look, wanted))
        for name, line in found.items():
            if line is None or not line.running:
                ended[name] = line
            else:
                ended.pop(name, None)
        lines = (found.get(name, ended.get(name)) for name in names)
        return [line for line in lines if line is not None and (line.running or line.at >= recent)]

    @property
    def _address(self) -> str:
        return self.store.uri if store_option(self.store) else ""

    def _recent(self) -> datetime:
        return self.clock() - timedelta(days=RECENT_DAYS)

    def _read_job(self, name: str, supervised: set[str]) -> JobLine | None:
        job = Job(self.store, name)
        status = status_of(job)
        if status is not None and status.state is not JobState.RUNNING and status.at < self._recent():
            return None
        summary = summarise(job)
        at = status.at if status else summary.spec.created_at
        if at < self._recent() and (status is None or status.state is not JobState.RUNNING):
            return None
        last, spec = summary.attempts[-1] if summary.attempts else None, summary.spec
        of = {name, spec.prepares, spec.evaluates, spec.sweep}  # whose heartbeat is its own
        loss, loss_name = summary.val_loss, "val"
        if loss is None:
            loss, loss_name = summary.train_loss, "train"
        curve = self._curves.setdefault(name, SmallCurve(job)).read()
        return JobLine(
            job=name,
            state=summary.state,
            activity=_activity(summary, last),
            why=_why(summary, last, status),
            needs=_needs(summary, last, bool(of & supervised), self.clock(), job),
            pool=last.pool if last else "",
            instance=last.instance if last else "",
            attempts=len(summary.attempts),
            step=summary.step,
            total_steps=summary.total_steps,
            loss=loss,
            loss_name=loss_name,
            curve=curve,
            cost_usd=summary.cost_usd,
            cost_left_usd=summary.cost_left_usd,
            max_cost_usd=summary.limits.max_cost_usd,
            seconds_left=summary.seconds_left,
            seconds=summary.seconds,
            project=spec.project,
            owner=spec.owner,
            store=self._address,
            at=at,
        )

    def _read_sweep(self, name: str, supervised: set[str]) -> SweepLine | None:
        sweep = Sweep(self.store, name)
        status = sweep.read_status()
        if status is not None and status.state is not JobState.RUNNING and status.at < self._recent():
            return None
        spec, trials = sweep.read_spec(), sweep.read_trials()
        limits = sweep.read_limits() if sweep.has_limits() else None
        ranked = sorted((t for t in trials if t.losses and not t.failure), key=lambda trial: trial.rank_key)
        state = status.state if status else None
        over = {"complete", "failed"} if state is JobState.RUNNING else {"complete", "failed", "waiting"}
        return SweepLine(
            sweep=name,
            state=state,
            why=status.reason if status else "not started yet",
            needs=_sweep_needs(f"{name}{store_option(sweep.root)}", state, name in supervised),
            trials=len(trials),
            max_trials=limits.max_trials if limits else None,
            done=sum(trial.state in over for trial in trials),
            failed=sum(bool(trial.failure) for trial in trials),
            best=ranked[0].value if ranked else None,
            metric=spec.objective.metric,
            best_trial=ranked[0].number if ranked else None,
            pool=spec.pool,
            cost_usd=sum(trial.cost_usd for trial in trials),
            max_cost_usd=limits.max_cost_usd if limits else None,
            store=self._address,
            at=status.at if status else spec.created_at,
        )


def _order(line: JobLine | SweepLine) -> tuple[bool, float]:
    return not line.running, -line.at.timestamp()


def _activity(summary: JobSummary, last: AttemptSummary | None) -> str:
    if summary.running:
        return last.end if last is not None and last.end_reason is None else "between two attempts"
    return {
        None: "not started",
        JobState.COMPLETED: "completed",
        JobState.PAUSED: "paused",
        JobState.BUDGET_STOP: "stopped at its limits",
        JobState.CANCELLED: "cancelled",
        JobState.FAILED: "failed",
        JobState.STOPPED: "given up",
    }[None if summary.state is None else summary.state]


def _why(summary: JobSummary, last: AttemptSummary | None, status: JobStatus | None) -> str:
    if summary.running:
        if last is None:
            return "its first attempt is being prepared"
        if last.end_reason is not None:
            return last.message or last.end
        return last.launched_because
    return status.reason if status else "no supervisor has taken it up yet"


def _needs(summary: JobSummary, last: AttemptSummary | None, supervised: bool, at: datetime, job: Job) -> str:
    """What a person has to do, with the command."""
    where = store_option(job.root)
    name, go_on = f"{summary.job_id}{where}", f"{summary.spec.continue_command}{where}"
    match summary.state:
        case JobState.BUDGET_STOP:
            return f"stopped at its limits; to go on: `{go_on} --max-cost-usd …`"
        case JobState.FAILED if summary.spec.prepares and summary.spec.script is None:
            return f"failed before there was a job: fix the cause, then start {summary.spec.prepares} again"
        case JobState.FAILED if summary.spec.script is not None and summary.spec.stage == "train":
            again = f"`crucible jobs fork {name} --code FOLDER`" if summary.committed_step else "`crucible run`"
            return f"failed: `crucible logs {name}` shows why; {again} once the script is mended, else `{go_on}`"
        case JobState.FAILED:
            return f"failed: fix the cause, then `{go_on}`; `crucible logs {name}` shows it"
        case JobState.STOPPED:
            return f"given up; look at `crucible jobs show {name}`, then `{go_on}`"
        case JobState.PAUSED:
            return f"paused; Resume in the Prefect UI, or `{go_on}`"
        case JobState.RUNNING if not supervised:
            return "nothing supervises it: is the watchdog running? `crucible doctor`"
        case JobState.RUNNING if last is not None and last.end == "waiting for a machine":
            launch = job.attempt(last.number).read_launch()
            seconds = (at - launch.decided_at).total_seconds() if launch else 0.0
            if seconds > LONG_WAIT_SECONDS:
                return f"waits for a machine of {last.pool} since {seconds / 60:.0f} min: does its worker run?"
    if last is not None and last.end_reason is EndReason.FAILED and summary.running:
        return f"its last attempt failed: {last.message}"
    return ""


def _sweep_needs(name: str, state: JobState | None, supervised: bool) -> str:
    match state:
        case JobState.BUDGET_STOP:
            return f"stopped at its limits; to go on: `crucible sweeps continue {name}`"
        case JobState.FAILED | JobState.STOPPED:
            return f"failed: look at `crucible sweeps show {name}`, then `crucible sweeps continue {name}`"
        case JobState.PAUSED:
            return f"paused; Resume in the Prefect UI, or `crucible sweeps continue {name}`"
        case JobState.RUNNING if not supervised:
            return "nothing supervises it: is the watchdog running? `crucible doctor`"
    return ""
