"""What Crucible needs of a tracker."""

from __future__ import annotations

import shlex
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from crucible.jobs.job import Job
from crucible.jobs.metrics import Row
from crucible.jobs.records import JobSpec
from crucible.jobs.status import JobState
from crucible.trackers.config import TrackerConfig


@dataclass(frozen=True)
class RunRequest:
    """The run that is to be opened for a job."""

    job: Job
    spec: JobSpec
    config: TrackerConfig
    run_id: str = ""
    """Of the run that the tracker has of this job already; empty: none is known."""

    @property
    def project(self) -> str:
        return self.config.project_for(self.spec.project)

    @property
    def parameters(self) -> dict[str, Any]:
        """The job's configuration, as trackers show it beside the curves."""
        spec = self.spec
        if spec.config is not None:
            return {**spec.config.model_dump(mode="json"), "dataset": spec.dataset}
        script = spec.script
        return {"command": shlex.join(script.command), **script.env, **script.settings} if script else {}

    @property
    def labels(self) -> dict[str, str]:
        """Whose job it is."""
        named = {
            "job": self.spec.job_id,
            "project": self.spec.project,
            "owner": self.spec.owner,
            "sweep": self.spec.sweep,
        }
        return {name: value for name, value in named.items() if value}


@dataclass(frozen=True)
class RunEnd:
    """How a job ended, and what it leaves."""

    state: JobState
    reason: str = ""
    figures: dict[str, float] = field(default_factory=dict)
    """Its cost and its number of attempts."""
    model: str = ""
    """The folder of the evaluated model, relative to the job; empty: there is none."""


class TrackedRun(Protocol):
    """A job's run at a tracker. What a method raises costs a log line; the same rows are then sent again."""

    run_id: str
    """As the tracker calls it."""
    url: str
    """Where a person sees it."""
    newest_step: int | None
    """The newest step that the tracker itself has; -1: it has none; None: not known."""

    def send(self, rows: Sequence[Row]) -> None:
        """Add rows, each with a higher step than any before; they must be safe when this returns."""

    def finish(self, end: RunEnd) -> None:
        """The job has ended, for now at least."""

    def close(self) -> None:
        """Leave the run as it is: another process goes on with it."""
