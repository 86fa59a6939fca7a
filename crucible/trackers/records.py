"""How far each tracker of a job is: `jobs/<job>/trackers/<name>.json`, written by the tracker's process only."""

from __future__ import annotations

from datetime import datetime

from pydantic import Field

from crucible.errors import ObjectMissing, RecordDamaged
from crucible.jobs.job import Job
from crucible.jobs.records import Record, ShownText, now
from crucible.trackers.config import TrackerKind

FOLDER = "trackers"


class TrackerRecord(Record):
    """What one tracker has of a job."""

    fix = "delete it: the tracker's own run then says how far it is"

    name: str
    kind: TrackerKind
    run_id: str = ""
    """The run's id at the tracker, where that is not the job's."""
    url: ShownText = ""
    """Where a person sees the run."""
    step: int = -1
    """The newest step that was sent; -1 before the first."""
    finished: bool = False
    """Whether the tracker was informed of the job's end."""
    model: str = ""
    """The folder of the model that it was given, relative to the job."""
    at: datetime = Field(default_factory=now)


def read_record(job: Job, name: str) -> TrackerRecord | None:
    """What the tracker of that name has of the job; None before it had anything, or where the record is damaged."""
    try:
        return job.store.read_model(f"{FOLDER}/{name}.json", TrackerRecord, TrackerRecord.fix)
    except (ObjectMissing, RecordDamaged):
        return None


def write_record(job: Job, record: TrackerRecord) -> None:
    record.at = now()
    job.store.write_model(f"{FOLDER}/{record.name}.json", record)


def read_records(job: Job) -> list[TrackerRecord]:
    """Every tracker that has something of the job, by name."""
    names = [info.key.rpartition("/")[2].removesuffix(".json") for info in job.store.list(FOLDER)]
    return [record for name in names if (record := read_record(job, name)) is not None]
