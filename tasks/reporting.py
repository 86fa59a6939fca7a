"""The job's report as an artifact in the Prefect UI."""

from __future__ import annotations

from uuid import UUID

from crucible.jobs.job import Job
from crucible.prefect_compat.live_artifacts import LiveArtifact
from crucible.reports import Metrics, job_report


def artifact_key(kind: str, job_id: str) -> str:
    """A key that Prefect takes: lower case, digits and dashes."""
    return f"{kind}-{job_id}".lower().replace("_", "-").replace(".", "-")


class JobReport:
    """A job's report under the job's constant key; kept for the life of a process, it reads again only what is new."""

    def __init__(self, job: Job, moves: bool = True) -> None:
        self._job, self._metrics = job, Metrics(job)
        self._artifact = LiveArtifact(artifact_key("job", job.job_id), "markdown", moves)

    def publish(self) -> UUID:
        """Show the job as it is now; returns the artifact's id. Raises what store and Prefect client raise."""
        return self._artifact.publish(job_report(self._job, self._metrics), f"Report of job {self._job.job_id}")
