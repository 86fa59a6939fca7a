"""Stages before and after a training: what their jobs are called, and what they cost."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from crucible.jobs.records import Record, ShownText, now


def stage_name(of: str, stage: str) -> str:
    """The name of the job that a stage of a script's job or sweep is."""
    return f"{of[:40]}-{stage}"


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
