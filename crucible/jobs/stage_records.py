"""Stages before and after a training: what their jobs are called, and what they cost."""

from __future__ import annotations

import hashlib
from datetime import datetime

from pydantic import Field

from crucible.jobs.records import Record, ShownText, now

LONGEST_IN_STAGE_NAME = 40
"""A job's name has 63 characters at most, and a stage's ends in up to `-evaluate-ec2-on-demand`."""
IN_STAGE_NAME = 31
"""So many characters of a job's name, at least, begin those of its stages."""


def stage_name(of: str, stage: str) -> str:
    """The name of the job that a stage of a script's job or sweep is; two long names of one beginning get two."""
    if len(of) > LONGEST_IN_STAGE_NAME:
        of = f"{of[:IN_STAGE_NAME]}-{hashlib.sha256(of.encode()).hexdigest()[:8]}"
    return f"{of}-{stage}"


class StageRun(Record):
    """A stage before or after the training, on a machine that somebody pays for.

    A stage of a script is a job with a bill of its own, which `job` names. Any other is a flow run, and this is its
    bill.
    """

    fix = "delete it: the stage is then missing from the job's bill"

    name: str
    """Of the record: the flow run's id, or the job's."""
    stage: str
    pool: ShownText
    job: str = ""
    instance: ShownText = ""
    usd_per_hour: float = 0.0
    seconds: float = 0.0
    cost_usd: float = 0.0
    end: ShownText = ""
    """Empty while it runs."""
    started_at: datetime = Field(default_factory=now)
