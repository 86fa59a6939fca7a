"""What can ask an attempt to stop: a small protocol, and the sources that every machine has.

A source is asked every second or so from the agent's watching thread. The first notice that says stop wins; one that
only warns is recorded and shown.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

from crucible.contract import StopReason, Variable
from crucible.jobs.records import EndReason, Limits

LIFETIME_MARGIN_SECONDS = 120.0


@dataclass(frozen=True)
class Notice:
    """Word that the machine, the money or the person's patience ends."""

    source: str
    reason: str
    deadline: float | None = None
    """Unix seconds at which the machine goes; None when nobody said."""
    stop: bool = True
    """False: a warning only, to be recorded."""
    end_reason: EndReason = EndReason.INTERRUPTED


class NoticeSource(Protocol):
    """Anything that may know that an attempt has to stop."""

    def poll(self) -> Notice | None:
        """The notice that stands, or None. Must return within about 2 s and raises nothing."""
        ...


class StopFile:
    """The stop request that a container's first process writes when it gets SIGTERM or SIGINT."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def poll(self) -> Notice | None:
        try:
            request = StopReason.read(self.path)
        except (OSError, ValueError):
            return None
        return Notice(source=request.source, reason=request.reason, deadline=request.deadline)


class MachineLifetime:
    """The hour at which the pool takes the machine away: stop early enough to save."""

    def __init__(self, ends_at: float, margin_seconds: float = LIFETIME_MARGIN_SECONDS) -> None:
        self.ends_at, self.margin_seconds = ends_at, margin_seconds

    def poll(self) -> Notice | None:
        if time.time() < self.ends_at - self.margin_seconds:
            return None
        return Notice(source="lifetime", reason="the pool's lifetime limit is near", deadline=self.ends_at)


def limit_reached(limits: Limits, spent_usd: float, age_hours: float) -> Notice | None:
    """The job's own money or time is used up.

    `spent_usd`: by all its attempts, and by the save that is to come; `age_hours`: of the job.
    """
    if limits.max_cost_usd is not None and spent_usd >= limits.max_cost_usd:
        reason = f"the job's budget of ${limits.max_cost_usd:g} is used up"
        return Notice("budget", reason, end_reason=EndReason.BUDGET)
    if limits.max_hours is not None and age_hours >= limits.max_hours:
        return Notice("deadline", f"the job's {limits.max_hours:g} hours are over", end_reason=EndReason.BUDGET)
    return None


def sources_of_this_machine(environment: Mapping[str, str] = os.environ) -> list[NoticeSource]:
    """The sources that exist here: EC2's metadata always (it finds out by itself), the others where configured."""
    from crucible.agent.notices_ec2 import Ec2MetadataNotices

    sources: list[NoticeSource] = [Ec2MetadataNotices()]
    if path := environment.get(Variable.STOP_FILE):
        sources.append(StopFile(Path(path)))
    if ends_at := environment.get(Variable.MACHINE_ENDS_AT):
        sources.append(MachineLifetime(float(ends_at)))
    return sources
