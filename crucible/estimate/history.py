"""What past runs really took: speeds, and estimates compared with results, as create-only records in the store.

    history/speeds/<pool>/<instance>/<name>.json       seconds per step of one run on one offer
    history/estimates/<job>.json                            a job's estimate, and what it really took and cost
    jobs/<job>/estimate.json                                the estimate made when the job was launched

Records are never rewritten, so two machines can add to the history at the same time.
"""

from __future__ import annotations

import logging
import statistics
import uuid
from collections.abc import Callable, Iterator
from datetime import datetime
from typing import TypeVar

from pydantic import Field

from crucible.errors import ObjectExists, ObjectMissing, RecordDamaged
from crucible.jobs.job import Job
from crucible.jobs.records import Record, now
from crucible.store import Store

R = TypeVar("R", bound=Record)

logger = logging.getLogger(__name__)

_SPEEDS, _ESTIMATES = "history/speeds", "history/estimates"


class SpeedRecord(Record):
    """One run's speed on one offer."""

    offer: str
    """`pool/instance`, or `pool/hardware` for your own machine."""
    workload: str
    seconds_per_step: float = Field(gt=0)
    reference_seconds_per_step: float = Field(gt=0)
    """What the step model predicts for this run on this hardware without any history."""
    flops_per_step: float = Field(gt=0)
    steps: int = Field(ge=1)
    source: str = "job"
    at: datetime = Field(default_factory=now)


class PlannedCost(Record):
    """The estimate a job was launched with."""

    offer: str
    speed_source: str
    low_hours: float
    hours: float
    high_hours: float
    low_usd: float
    usd: float
    high_usd: float
    at: datetime = Field(default_factory=now)


class EstimateRecord(Record):
    """An estimate compared with the result."""

    job_id: str
    planned: PlannedCost
    hours: float
    usd: float
    at: datetime = Field(default_factory=now)

    @property
    def hours_error(self) -> float:
        """Estimated over real hours, minus one: +0.1 is an estimate that was 10 % too long."""
        return self.planned.hours / self.hours - 1

    @property
    def within_bounds(self) -> bool:
        return self.planned.low_hours <= self.hours <= self.planned.high_hours


def remember_speed(store: Store, record: SpeedRecord, name: str | None = None) -> None:
    """Add one record, once per `name`; idempotent."""
    name = name or f"{record.at:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}"
    try:
        store.create_model(f"{_SPEEDS}/{record.offer}/{name}.json", record)
    except ObjectExists:
        return


def speeds(store: Store, on_damage: Callable[[str], None] = logger.warning) -> list[SpeedRecord]:
    """Every record, oldest first; damaged ones are reported and left out."""
    return sorted(_records(store, _SPEEDS, SpeedRecord, on_damage), key=lambda record: record.at)


def remember_plan(job: Job, planned: PlannedCost) -> None:
    """Keep the estimate a job was launched with; only the first call counts."""
    try:
        job.store.create_model("estimate.json", planned)
    except ObjectExists:
        return


def read_plan(job: Job) -> PlannedCost | None:
    """The estimate a job was launched with, if there was one."""
    try:
        return job.store.read_model("estimate.json", PlannedCost)
    except ObjectMissing:
        return None


def remember_result(job: Job) -> EstimateRecord | None:
    """After a job's end, record its estimate with the result. None without an estimate, or if it took no time."""
    planned = read_plan(job)
    outcomes = [outcome for attempt in job.attempts() if (outcome := attempt.read_outcome()) is not None]
    seconds = sum(outcome.seconds for outcome in outcomes)
    if planned is None or seconds <= 0:
        return None
    usd = sum(outcome.cost_usd for outcome in outcomes)
    record = EstimateRecord(job_id=job.job_id, planned=planned, hours=seconds / 3600, usd=usd)
    try:
        job.root.create_model(f"{_ESTIMATES}/{job.job_id}.json", record)
    except ObjectExists:
        return job.root.read_model(f"{_ESTIMATES}/{job.job_id}.json", EstimateRecord)
    return record


def estimates(store: Store) -> list[EstimateRecord]:
    """Every estimate whose job has ended, oldest first; damaged ones are reported and left out."""
    return sorted(_records(store, _ESTIMATES, EstimateRecord, logger.warning), key=lambda record: record.at)


def _records(store: Store, folder: str, model: type[R], on_damage: Callable[[str], None]) -> Iterator[R]:
    for info in store.list(folder):
        try:
            yield store.read_model(info.key, model)
        except RecordDamaged as error:
            on_damage(f"left out of the history: {error}")
        except ObjectMissing:
            continue  # deleted since it was listed


def accuracy(records: list[EstimateRecord]) -> dict[str, float | int]:
    """How good the estimates have been: number, median and worst error of the hours, share within the bounds."""
    errors = [abs(record.hours_error) for record in records]
    return {
        "jobs": len(records),
        "median_error": statistics.median(errors) if errors else 0.0,
        "worst_error": max(errors, default=0.0),
        "within_bounds": sum(record.within_bounds for record in records) / len(records) if records else 0.0,
    }
