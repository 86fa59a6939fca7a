"""The job's report as an artifact in the Prefect UI."""

from __future__ import annotations

from uuid import UUID

from prefect.artifacts import create_markdown_artifact

from crucible.jobs.job import Job
from crucible.reports import Metrics, job_report


def artifact_key(kind: str, job_id: str) -> str:
    """A key that Prefect takes: lower case, digits and dashes."""
    return f"{kind}-{job_id}".lower().replace("_", "-").replace(".", "-")


def publish_report(job: Job, metrics: Metrics | None = None) -> UUID | None:
    """Publish the report under the job's constant key, whose history keeps the earlier ones.

    One `metrics` for the life of a process spares reading again what was read before.
    """
    created = create_markdown_artifact(
        job_report(job, metrics), key=artifact_key("job", job.job_id), description=f"Report of job {job.job_id}"
    )
    return created if isinstance(created, UUID) else None
