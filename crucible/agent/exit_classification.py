"""Why an attempt ended: from what the workload did, and what it was asked to do."""

from __future__ import annotations

from crucible.agent.notices import Notice
from crucible.agent.workload import WorkloadEnd
from crucible.errors import LocalDiskError, SourceUnreachable, StoreUnavailable
from crucible.jobs.records import EndReason


def verdict(
    end: WorkloadEnd | None, notice: Notice | None, stop_at_step: int | None, committed_step: int
) -> tuple[EndReason, str]:
    """The reason and its words. `end` is None when the notice came before the workload was started."""
    if end is not None and end.end_reason is EndReason.COMPLETED:
        return end.end_reason, end.message
    if notice is not None and (end is None or end.end_reason is not EndReason.FAILED):
        return notice.end_reason, notice.reason
    assert end is not None
    if end.end_reason is EndReason.INTERRUPTED and stop_at_step is not None and committed_step >= stop_at_step:
        return EndReason.PAUSED, f"trained to step {committed_step} as asked"
    return end.end_reason, end.message


def blame(error: Exception) -> EndReason:
    """Interrupted when the same may go well at another time or place, failed when it is the user's to fix."""
    passes = isinstance(error, StoreUnavailable | SourceUnreachable | LocalDiskError)
    return EndReason.INTERRUPTED if passes else EndReason.FAILED
