"""How often checkpoints are made, and why, as a sentence."""

from __future__ import annotations

from collections.abc import Sequence

from crucible.formatting import duration
from crucible.intervals import UNINTERRUPTED_MTBF_SECONDS, checkpoint_interval_seconds
from crucible.reports.summary import AttemptSummary

NEARLY = 0.1
"""The agent follows the measured costs lazily, so that an interval this near its optimum is its optimum."""


def interval_label(attempts: Sequence[AttemptSummary], fixed_seconds: float | None) -> str:
    """The checkpoint interval of the newest attempt that measured what a save costs, and the reason for it.

    `fixed_seconds` is the interval the user asked for, if any. Empty before anything was measured.
    """
    attempt = next((a for a in reversed(attempts) if a.saving.get("bytes")), None)
    if attempt is None:
        return ""
    if own := attempt.saving.get("own_interval_seconds"):
        stored = duration(attempt.saving["durable_seconds"])
        return f"every {duration(own)}, when the script saves; a checkpoint is in the store {stored} later"
    interval = attempt.saving["interval_seconds"]
    stall, durable = attempt.saving["stall_seconds"], attempt.saving["durable_seconds"]
    cost = f"a save stops training for {duration(stall)} and is in the store after {duration(durable)}"
    return f"every {duration(interval)}: {cost}; {_reason(attempt, interval, fixed_seconds)}"


def _reason(attempt: AttemptSummary, interval: float, fixed_seconds: float | None) -> str:
    if fixed_seconds is not None and _near(interval, fixed_seconds):
        return "the interval was set in the configuration"
    if attempt.mtbf_seconds:
        mtbf, expected = attempt.mtbf_seconds, "interruptions are expected"
    else:
        mtbf, expected = UNINTERRUPTED_MTBF_SECONDS, "this pool does not interrupt, and a crash is expected"
    optimum = checkpoint_interval_seconds(max(attempt.saving["stall_seconds"], 1e-3), mtbf)
    basis = f"{expected} every {duration(mtbf)} on average"
    if _near(interval, optimum):
        return f"{basis}: this interval loses least time (Young and Daly)"
    if _near(interval, 1.5 * attempt.saving["durable_seconds"]):
        return "it was made longer so that saves do not queue up on their way to the store"
    side = "shortest" if interval > optimum else "longest"
    return f"{basis}, which asks for {duration(optimum)}: this is the {side} interval allowed"


def _near(a: float, b: float) -> bool:
    return abs(a - b) <= NEARLY * b
