"""How much of the store each project holds, compared with what it may."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from crucible.errors import ObjectMissing, RecordDamaged
from crucible.formatting import size
from crucible.jobs.job import Job
from crucible.store import Store

WARN_PERCENT = 80
NAMED_JOBS = 3


@dataclass(frozen=True)
class ProjectUse:
    """One project."""

    project: str
    bytes: int
    quota_bytes: float
    largest: Sequence[tuple[str, int]]
    """Its largest jobs with their bytes."""

    @property
    def percent(self) -> float:
        return 100 * self.bytes / self.quota_bytes

    @property
    def warning(self) -> str:
        """What a person should know; empty below the threshold."""
        if self.percent < WARN_PERCENT:
            return ""
        jobs = ", ".join(f"{job} ({size(count)})" for job, count in self.largest)
        return (
            f"project {self.project} holds {size(self.bytes)}, {self.percent:.0f} % of its {size(self.quota_bytes)}; "
            f"most of it: {jobs}. Clean up earlier with --days, or raise the quota"
        )


def project_use(store: Store, quota_bytes: float) -> list[ProjectUse]:
    """Every project, the largest first; jobs whose records cannot be read count for the project `unknown`."""
    jobs: dict[str, int] = {}
    for info in store.list("jobs"):
        job_id = info.key.split("/", 2)[1]
        jobs[job_id] = jobs.get(job_id, 0) + info.size
    projects: dict[str, list[tuple[str, int]]] = {}
    for job_id in Job.ids(store):
        projects.setdefault(_project(store, job_id), []).append((job_id, jobs.get(job_id, 0)))
    found = [
        ProjectUse(
            project=project,
            bytes=sum(count for _, count in held),
            quota_bytes=quota_bytes,
            largest=sorted(held, key=lambda entry: -entry[1])[:NAMED_JOBS],
        )
        for project, held in projects.items()
    ]
    return sorted(found, key=lambda use: -use.bytes)


def _project(store: Store, job_id: str) -> str:
    try:
        return Job(store, job_id).read_spec().project
    except (RecordDamaged, ObjectMissing):
        return "unknown"
