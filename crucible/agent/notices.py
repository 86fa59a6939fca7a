"""Notices: requests to stop because the machine goes, the money or time is used up, or a person wants it.

A `NoticeSource` is polled every second or so by the agent's watching thread. The first notice that says stop wins; one
that only warns is recorded and shown. The sources of this machine are in `sources.py`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from crucible.jobs.records import EndReason, Limits


@dataclass(frozen=True)
class Notice:
    """A request to stop, or a warning that one may come: preemption, budget, time or cancellation."""

    source: str
    reason: str
    deadline: float | None = None
    """Unix seconds at which the machine goes; None where it is not known."""
    stop: bool = True
    """False: a warning only, to be recorded."""
    end_reason: EndReason = EndReason.INTERRUPTED


class NoticeSource(Protocol):
    """Anything that may know that an attempt has to stop."""

    def poll(self) -> Notice | None:
        """The notice that stands, or None. Must return within about 2 s and raises nothing."""
        ...


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
