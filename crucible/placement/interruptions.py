"""How often a pool takes machines away: from the jobs' own records, before any assumption."""

from __future__ import annotations

from crucible.jobs.job import Job
from crucible.jobs.records import EndReason
from crucible.store import Store

ENOUGH_INTERRUPTIONS = 3
"""With fewer than these, the catalog's figure is the better guess."""


def observed_mtbf_seconds(store: Store, pool: str) -> float | None:
    """Mean seconds of machine time between interruptions on `pool`, over all jobs on record; None: too few to say.

    Notices and losses count; the job's own end, its own failure and a person's cancel do not.
    """
    seconds, interruptions = 0.0, 0
    for job_id in Job.ids(store):
        for attempt in Job(store, job_id).attempts():
            launch, outcome = attempt.read_launch(), attempt.read_outcome()
            if launch is None or outcome is None or launch.pool != pool:
                continue
            seconds += outcome.seconds
            interruptions += outcome.end_reason in (EndReason.INTERRUPTED, EndReason.LOST)
    return seconds / interruptions if interruptions >= ENOUGH_INTERRUPTIONS else None
