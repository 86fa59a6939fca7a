"""The placement policy: where a job goes when that is more than a list of places tried in order, by deadline or queue.

The supervisor asks it before each launch (`next`), and every so often while an attempt runs or waits for a machine
(`why_leave`). It sees the job's attempts as `AttemptView`s, which are made of records alone: a supervisor that takes
over asks the same questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from crucible.supervision.retry_policy import Decision
from crucible.supervision.snapshot import AttemptView


class PlacementPolicy(Protocol):
    """Chooses places. Must not raise."""

    @property
    def waits_for(self) -> frozenset[str]:
        """Pools whose machines are waited for: an attempt may stay in their queue as long as it takes."""

    def next(self, attempts: Sequence[AttemptView], decision: Decision) -> Decision:
        """The launch that the retry policy decided, possibly at another place and with the reason for it."""

    def why_leave(self, attempts: Sequence[AttemptView]) -> str | None:
        """Why the last attempt, which is not over, should save and stop (or stop waiting) now; None to go on."""
