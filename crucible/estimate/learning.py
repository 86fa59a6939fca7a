"""After a job: remember how fast it was on every offer it ran on, and how wrong its estimate had been."""

from __future__ import annotations

import json
import socket
import statistics

from crucible.catalog.offers import Offer, load_catalog
from crucible.catalog.this_machine import with_own_machine
from crucible.config import TrainConfig
from crucible.datasets.meta import DatasetMeta
from crucible.errors import ConfigError, ObjectMissing
from crucible.estimate.for_job import job_needs, offer_at
from crucible.estimate.history import EstimateRecord, remember_speed, remember_truth
from crucible.estimate.speed import speed_record
from crucible.jobs.job import Attempt, Job

_FEWEST_ROWS = 3  # reports of speed; the first one carries compilation and caches and is left out


def remember_job(job: Job) -> EstimateRecord | None:
    """Put the job's speeds and its estimate's error into the history; doing it again changes nothing.

    Returns the estimate beside the truth, or None when the job was launched without one. Jobs of scripts have no speed
    that other jobs could use and leave only the latter.
    """
    spec = job.read_spec()
    try:
        config = TrainConfig.parse(spec.config)
        where = f"datasets/{spec.dataset}/meta.json"
        meta = DatasetMeta.parse(job.root.read_json(where), where)
    except (ConfigError, ObjectMissing):
        return remember_truth(job)
    needs, offers = job_needs(config, meta), with_own_machine(load_catalog())
    for attempt in job.attempts():
        offer = _offer_of(attempt, offers)
        seconds, steps = _speed(attempt)
        if offer is not None and seconds is not None:
            record = speed_record(needs, offer, seconds, steps)
            remember_speed(job.root, record, name=f"{job.job_id}-{attempt.number:04d}")
    return remember_truth(job)


def _offer_of(attempt: Attempt, offers: list[Offer]) -> Offer | None:
    launch, claim = attempt.read_launch(), attempt.read_claim()
    if launch is None or claim is None:
        return None
    offer = offer_at(offers, launch.pool, launch.instance or claim.instance)
    if offer is not None and offer.own_machine and claim.host != socket.gethostname():
        return None  # somebody else's own machine: what it is, is not on record
    return offer


def _speed(attempt: Attempt) -> tuple[float | None, int]:
    """Median seconds per step of the attempt's reports, and the steps they cover."""
    rows = [json.loads(line) for line in attempt.metrics()]
    reports = [row for row in rows if row.get("seconds_per_step")][1:]
    if len(reports) < _FEWEST_ROWS:
        return None, 0
    steps = int(reports[-1]["step"] - reports[0]["step"])
    return statistics.median(float(row["seconds_per_step"]) for row in reports), max(steps, 1)
