"""What was spent: one line per attempt and per stage on a pool, from their own records, and sums over them.

Money is summed in whole millionths of a dollar, so that every way of adding up the same attempts gives the same total.
An attempt (or job) whose record is damaged is reported and left out; the others are not affected.
"""

from __future__ import annotations

import csv
import io
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from datetime import datetime
from typing import Any

from crucible.billing.machines import machines_of, on_demand_usd_per_hour
from crucible.catalog.offers import Offer
from crucible.errors import ConfigError, ObjectMissing, RecordDamaged
from crucible.jobs.job import Attempt, Job
from crucible.jobs.names import sweep_in_name
from crucible.jobs.records import Claim, Heartbeat, JobSpec, Launch, Outcome
from crucible.jobs.stage_records import StageRun
from crucible.store import Store

logger = logging.getLogger(__name__)

MICRO = 1_000_000
RUNNING = "running"
GROUPS = ("job", "sweep", "project", "owner", "stage", "pool", "instance", "gpu", "day", "month")
"""What costs can be broken down by."""


@dataclass(frozen=True)
class AttemptCost:
    """The bill of one attempt, or of one run of a stage around the training. Money in millionths of a dollar."""

    job: str
    attempt: int
    """Counted in each stage from 1."""
    stage: str
    """`preprocess`, `train` or `evaluate`."""
    pool: str
    instance: str
    """Of several nodes with different machines, each type once."""
    gpu: str
    """Of the first node's machine."""
    project: str
    owner: str
    started_at: datetime
    end_reason: str
    """`running` while it runs; its cost is then that of its last heartbeat."""
    seconds: float
    usd_per_hour: float
    micro_usd: int
    on_demand_micro_usd: int
    """The same seconds at the on-demand price of the same machine."""
    idle_seconds: float
    """From the claim to the first new step: paid time without training."""
    sweep: str = ""
    """The sweep that the job is a trial of; empty for any other job."""
    gpus: int = 0
    unused_gpus: int = 0
    """GPUs of the machine that the job's micro-batches cannot be divided over."""

    @property
    def usd(self) -> float:
        return self.micro_usd / MICRO

    @property
    def running(self) -> bool:
        return self.end_reason == RUNNING

    @property
    def day(self) -> str:
        return f"{self.started_at:%Y-%m-%d}"

    @property
    def month(self) -> str:
        return f"{self.started_at:%Y-%m}"


def attempt_costs(
    store: Store,
    offers: Mapping[str, Offer],
    since: datetime | None = None,
    until: datetime | None = None,
    job: str | None = None,
    on_damage: Callable[[str], None] = logger.warning,
) -> list[AttemptCost]:
    """The bill of every attempt that was claimed in [since, until), by job and number.

    `offers` by `pool/instance` give the on-demand prices. Attempts that were never claimed cost nothing and are left
    out. `on_damage` receives a message for each record that is skipped.
    """
    return Bill(store, offers, on_damage).read(since, until, job)


class Bill:
    """The bill of a store's attempts, for somebody who reads it again and again.

    What has ended does not change and is read once: with hundreds of jobs on S3 a whole bill takes a minute.
    """

    def __init__(
        self, store: Store, offers: Mapping[str, Offer], on_damage: Callable[[str], None] = logger.warning
    ) -> None:
        self._store, self._offers, self._on_damage = store, offers, on_damage
        self._specs: dict[str, JobSpec] = {}
        self._ended: dict[tuple[str, int], AttemptCost] = {}

    def read(
        self, since: datetime | None = None, until: datetime | None = None, job: str | None = None
    ) -> list[AttemptCost]:
        """As `attempt_costs`; with `job`, also the jobs that its stages are."""
        job_ids = Job.ids(self._store) if job is None else _with_stages(Job.open(self._store, job))
        sweeps = set(self._store.folders("sweeps"))
        costs: list[AttemptCost] = []
        for job_id in job_ids:
            with skipping_damage(self._on_damage, f"job {job_id} is left out of the bill"):
                costs += self._of_job(Job(self._store, job_id), sweep_of(job_id, sweeps))
        return [
            cost
            for cost in costs
            if (since is None or cost.started_at >= since) and (until is None or cost.started_at < until)
        ]

    def _of_job(self, job: Job, sweep: str) -> list[AttemptCost]:
        costs = []
        spec = self._specs.get(job.job_id) or self._specs.setdefault(job.job_id, job.read_spec())
        sweep = sweep or spec.sweep
        for attempt in job.attempts():
            key = job.job_id, attempt.number
            if key in self._ended:
                costs.append(self._ended[key])
                continue
            with skipping_damage(
                self._on_damage, f"attempt {attempt.number} of job {spec.job_id} is left out of the bill"
            ):
                if (cost := _cost(spec, attempt, self._offers, sweep)) is not None:
                    costs.append(cost)
                    if not cost.running:
                        self._ended[key] = cost
        with skipping_damage(self._on_damage, f"the stages of job {spec.job_id} are left out of the bill"):
            costs += _stage_costs(spec, [run for run in job.read_stages() if not run.job], self._offers)
        return costs


@contextmanager
def skipping_damage(on_damage: Callable[[str], None], consequence: str) -> Iterator[None]:
    """Report and skip a damaged, deleted or foreign record; a store that does not answer still raises."""
    try:
        yield
    except (RecordDamaged, ObjectMissing, ConfigError) as error:
        on_damage(f"{consequence}: {error}")


def total_micro_usd(costs: Sequence[AttemptCost]) -> int:
    """Their sum, exactly."""
    return sum(cost.micro_usd for cost in costs)


def saved_share(costs: Sequence[AttemptCost]) -> float:
    """Saved against the same time on demand: 1 - paid / on-demand, as SageMaker counts managed spot savings."""
    on_demand = sum(cost.on_demand_micro_usd for cost in costs)
    return 1 - total_micro_usd(costs) / on_demand if on_demand else 0.0


@dataclass(frozen=True)
class GroupCost:
    """The sum over one group of attempts. Money in millionths of a dollar."""

    name: str
    attempts: int
    jobs: int
    seconds: float
    micro_usd: int
    on_demand_micro_usd: int
    share: float
    """Of the sum over all groups."""

    @property
    def saved_share(self) -> float:
        """Saved against the same time on demand."""
        return 1 - self.micro_usd / self.on_demand_micro_usd if self.on_demand_micro_usd else 0.0

    def to_dict(self, by: str) -> dict[str, Any]:
        """For `--json`; `by` names the column of the group's name."""
        return {
            by: self.name,
            "attempts": self.attempts,
            "jobs": self.jobs,
            "hours": self.seconds / 3600,
            "usd": self.micro_usd / MICRO,
            "on_demand_usd": self.on_demand_micro_usd / MICRO,
            "saved_share": self.saved_share,
            "share": self.share,
        }


def breakdown(costs: Sequence[AttemptCost], by: str) -> list[GroupCost]:
    """Sums per group, most expensive first.

    Raises:
        ConfigError: `by` is not one of `GROUPS`.
    """
    if by not in GROUPS:
        raise ConfigError(f"by is {by!r}: it must be one of {', '.join(GROUPS)}")
    groups: dict[str, list[AttemptCost]] = {}
    for cost in costs:
        groups.setdefault(str(getattr(cost, by) or "-"), []).append(cost)
    total = max(total_micro_usd(costs), 1)
    sums = [
        GroupCost(
            name=name,
            attempts=len(group),
            jobs=len({cost.job for cost in group}),
            seconds=sum(cost.seconds for cost in group),
            micro_usd=total_micro_usd(group),
            on_demand_micro_usd=sum(cost.on_demand_micro_usd for cost in group),
            share=total_micro_usd(group) / total,
        )
        for name, group in groups.items()
    ]
    return sorted(sums, key=lambda group: (-group.micro_usd, -group.seconds, group.name))


def as_rows(costs: Sequence[AttemptCost]) -> list[dict[str, Any]]:
    """One flat row per attempt, for CSV and JSON; `usd` with all six digits."""
    names = [field.name for field in fields(AttemptCost) if not field.name.endswith("micro_usd")]
    return [
        {
            **{name: getattr(cost, name) for name in names},
            "started_at": cost.started_at.isoformat(),
            "seconds": round(cost.seconds, 3),
            "usd": f"{cost.micro_usd / MICRO:.6f}",
            "on_demand_usd": f"{cost.on_demand_micro_usd / MICRO:.6f}",
        }
        for cost in costs
    ]


def as_csv(costs: Sequence[AttemptCost]) -> str:
    """The attempts as CSV, with a header even when there are none."""
    text = io.StringIO()
    names = [field.name for field in fields(AttemptCost) if not field.name.endswith("micro_usd")]
    writer = csv.DictWriter(text, [*names, "usd", "on_demand_usd"], lineterminator="\n")
    writer.writeheader()
    writer.writerows({name: _literal(value) for name, value in row.items()} for row in as_rows(costs))
    return text.getvalue()


def _literal(value: object) -> object:
    """A cell that a spreadsheet shows as it is: text that looks like a formula gets a leading apostrophe."""
    return f"'{value}" if isinstance(value, str) and value.lstrip().startswith(("=", "+", "-", "@")) else value


def advice(costs: Sequence[AttemptCost]) -> list[str]:
    """What would have been cheaper, in figures; often nothing."""
    sentences = []
    paid = [cost for cost in costs if cost.micro_usd]
    total = total_micro_usd(paid)
    if not total:
        return []
    idle = sum(cost.micro_usd * min(1.0, cost.idle_seconds / cost.seconds) for cost in paid if cost.seconds)
    if idle > 0.1 * total:
        sentences.append(
            f"{idle / total:.0%} of the money (${idle / MICRO:,.2f}) went into starting up, before the first step: "
            "fewer and longer attempts, or a smaller image, would save most of it"
        )
    steady = [cost for cost in paid if cost.pool == "ec2-on-demand"]
    if total_micro_usd(steady) > 0.5 * total:
        sentences.append(
            f"{total_micro_usd(steady) / total:.0%} of the money (${total_micro_usd(steady) / MICRO:,.2f}) was paid on "
            "demand; the same machines on spot cost about 60 % less, and interruptions cost a restart each"
        )
    wasted = sum(cost.micro_usd * cost.unused_gpus // cost.gpus for cost in paid if cost.gpus)
    if wasted:
        jobs = sorted({cost.job for cost in paid if cost.unused_gpus})
        sentences.append(
            f"${wasted / MICRO:,.2f} were paid for GPUs that stood idle in {', '.join(jobs)}: choose a machine with "
            "fewer GPUs; a gradient_accumulation_steps that they divide evenly would change the training"
        )
    return sentences


def _with_stages(job: Job) -> list[str]:
    """The job, and those of its stages that are jobs."""
    return [job.job_id, *(run.job for run in job.read_stages() if run.job)]


def sweep_of(job_id: str, sweeps: set[str]) -> str:
    """The one of the sweeps that a job is named as a trial of; empty for any other job."""
    name = sweep_in_name(job_id)
    return name if name in sweeps else ""


def on_demand_micro_usd(seconds: float, micro_usd: int, usd_per_hour: float | None) -> int:
    """The same seconds at the on-demand price; what was paid if that is more, or if the price is unknown."""
    return micro_usd if usd_per_hour is None else max(round(seconds / 3600 * usd_per_hour * MICRO), micro_usd)


def attempt_usd_per_hour(launch: Launch, claim: Claim | None, record: Heartbeat | Outcome | None) -> float:
    """The latest price on record: as last metered, else as claimed, else as planned."""
    for known in (record, claim):
        if known is not None and known.usd_per_hour is not None:
            return known.usd_per_hour
    return launch.usd_per_hour


def _cost(spec: JobSpec, attempt: Attempt, offers: Mapping[str, Offer], sweep: str) -> AttemptCost | None:
    launch, claim, outcome = attempt.read_launch(), attempt.read_claim(), attempt.read_outcome()
    record = outcome or attempt.read_heartbeat()
    if launch is None or claim is None or record is None:
        return None
    machines = machines_of(launch, claim, record)
    offer = offers.get(f"{launch.pool}/{machines[0]}")
    on_demand = on_demand_usd_per_hour(launch.pool, machines, offers)
    micro = round(record.cost_usd * MICRO)
    gpus = offer.gpus if offer is not None else 0
    first_step = outcome.first_step_after_seconds if outcome is not None else None
    return AttemptCost(
        job=spec.job_id,
        attempt=attempt.number,
        stage=spec.stage,
        pool=launch.pool,
        instance=" + ".join(dict.fromkeys(filter(None, machines))),
        gpu=offer.gpu if offer is not None else "",
        project=spec.project,
        owner=spec.owner,
        started_at=claim.claimed_at,
        end_reason=outcome.end_reason.value if outcome is not None else RUNNING,
        seconds=record.seconds,
        usd_per_hour=attempt_usd_per_hour(launch, claim, record),
        micro_usd=micro,
        on_demand_micro_usd=on_demand_micro_usd(record.seconds, micro, on_demand),
        idle_seconds=first_step or 0.0,
        sweep=sweep,
        gpus=gpus,
        unused_gpus=_unused(gpus, spec, claim.nodes),
    )


def _stage_costs(spec: JobSpec, runs: Sequence[StageRun], offers: Mapping[str, Offer]) -> list[AttemptCost]:
    counted: dict[str, int] = {}
    costs = []
    for run in runs:
        counted[run.stage] = counted.get(run.stage, 0) + 1
        micro, offer = round(run.cost_usd * MICRO), offers.get(f"{run.pool}/{run.instance}")
        on_demand = on_demand_usd_per_hour(run.pool, [run.instance], offers)
        costs.append(
            AttemptCost(
                job=spec.job_id,
                attempt=counted[run.stage],
                stage=run.stage,
                pool=run.pool,
                instance=run.instance,
                gpu=offer.gpu if offer is not None else "",
                project=spec.project,
                owner=spec.owner,
                started_at=run.started_at,
                end_reason=run.end or RUNNING,
                seconds=run.seconds,
                usd_per_hour=run.usd_per_hour,
                micro_usd=micro,
                on_demand_micro_usd=on_demand_micro_usd(run.seconds, micro, on_demand),
                idle_seconds=0.0,
            )
        )
    return costs


def _unused(gpus: int, spec: JobSpec, nodes: int) -> int:
    """GPUs of each machine that are paid for and do not train: as many train as share a step evenly."""
    wanted = gpus if spec.resources.gpus is None else min(gpus, spec.resources.gpus)
    return gpus - spec.config.processes_on(wanted, nodes) if spec.config and gpus else 0
