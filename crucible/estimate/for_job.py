"""A job's estimate before it starts, and what is learned from it once it has ended."""

from __future__ import annotations

import socket
import statistics
from collections.abc import Mapping

from crucible.catalog.offers import Offer, load_catalog
from crucible.catalog.this_machine import with_own_machine
from crucible.config import TrainConfig
from crucible.datasets.meta import DatasetMeta
from crucible.errors import ConfigError, ObjectMissing
from crucible.estimate import history
from crucible.estimate.needs import Needs, needs_of
from crucible.estimate.ranking import PoolState, Preferences, Recommendation, recommend, why_nothing_fits
from crucible.estimate.speed import speed_record
from crucible.jobs.job import Attempt, Job
from crucible.jobs.metrics import Metrics
from crucible.store import Store

_FEWEST_REPORTS = 3


def recommend_for(
    store: Store,
    config: TrainConfig,
    meta: DatasetMeta,
    preferences: Preferences,
    pools: Mapping[str, PoolState] | None = None,
) -> Recommendation:
    """Rank the offers for a job that is about to start, with the speeds remembered in `store`.

    With `pools`, only offers whose pool can take the job now count.

    Raises:
        ConfigError: nothing fits, with the most frequent reasons.
    """
    offers = with_own_machine(load_catalog())
    found = recommend(
        job_needs(config, meta), offers, preferences, history.speeds(store), pools=pools, only_ready=pools is not None
    )
    if found.best is None:
        raise ConfigError(why_nothing_fits(found))
    return found


def job_needs(config: TrainConfig, meta: DatasetMeta, tokens: int | None = None) -> Needs:
    """What a run of `config` on the dataset needs; `tokens` replaces the number of steps."""
    dataset_bytes, val_tokens = meta.tokens * meta.token_bytes, meta.splits["val"].tokens
    return needs_of(config, meta.vocab_size, tokens, dataset_bytes, val_tokens)


def remember_job(job: Job) -> history.EstimateRecord | None:
    """Put an ended job's speeds and its estimate's error into the history; idempotent.

    Returns the estimate compared with the result, or None for a job that was launched without one. Jobs of scripts have
    no speed that other jobs could use.
    """
    spec = job.read_spec()
    if spec.config is None:
        return history.remember_result(job)
    try:
        where = f"datasets/{spec.dataset}/meta.json"
        meta = DatasetMeta.parse(job.root.read_json(where), where)
    except (ConfigError, ObjectMissing):
        return history.remember_result(job)
    needs, offers = job_needs(spec.config, meta), with_own_machine(load_catalog())
    for attempt in job.attempts():
        offer = _offer_of(attempt, offers)
        seconds, steps = _speed(attempt)
        if offer is not None and seconds is not None:
            record = speed_record(needs, offer, seconds, steps)
            history.remember_speed(job.root, record, name=f"{job.job_id}-{attempt.number:04d}")
    return history.remember_result(job)


def _offer_of(attempt: Attempt, offers: list[Offer]) -> Offer | None:
    """The offer of the machine that took the attempt up, which may be another than the planned one; None for nodes on
    different machines, whose speed says nothing about either."""
    launch, claim = attempt.read_launch(), attempt.read_claim()
    if launch is None or claim is None:
        return None
    instance = claim.instance or launch.instance
    outcome = attempt.read_outcome()
    if outcome is not None and set(outcome.further_instances) - {instance}:
        return None
    # Own machines are recorded without a type.
    found = (o for o in offers if o.pool == launch.pool and (o.instance == instance or o.own_machine))
    offer = next(found, None)
    if offer is not None and offer.own_machine and claim.host != socket.gethostname():
        return None  # another machine, whose hardware is not on record
    return offer.on_nodes(claim.nodes) if offer is not None else None


def _speed(attempt: Attempt) -> tuple[float | None, int]:
    """Median seconds per step of the attempt's reports, and the steps they cover."""
    rows = Metrics(attempt.job).of_attempt(attempt)
    reports = [row for row in rows if row.get("seconds_per_step")][1:]  # the first includes compilation and cold caches
    if len(reports) < _FEWEST_REPORTS:
        return None, 0
    steps = int(reports[-1]["step"] - reports[0]["step"])
    return statistics.median(float(row["seconds_per_step"]) for row in reports), max(steps, 1)
