"""What the supervisor needs from outside: a launcher that starts attempts on pools, and a listener that shows moves."""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol

from crucible.jobs.job import Job
from crucible.jobs.records import Heartbeat, Launch, Outcome


class PoolSays(StrEnum):
    """What the pool believes of a run."""

    WAITING = "waiting"
    ALIVE = "alive"
    ENDED = "ended"
    UNKNOWN = "unknown"


@dataclass(frozen=True)
class Hint:
    """The pool's belief, with its message; never the truth by itself."""

    says: PoolSays
    message: str = ""
    cancelled: bool = False
    """A person cancelled the run there."""
    queued: bool = False
    """It waits for a slot among others: the pool's workers are there, and its turn comes."""
    unserved: bool = False
    """No worker is there that could take it; the message says so."""
    permanent: bool = False
    """What keeps the run from starting does not go away by itself: trying again cannot help."""


class Launcher(Protocol):
    """Starts attempts on pools."""

    def launch(self, job: Job, launch: Launch) -> None:
        """Start the attempt; doing it again must find the same run. Raises `CrucibleError` when it cannot."""

    def hint(self, job: Job, launch: Launch) -> Hint:
        """What the pool believes; must not raise."""

    def retire(self, job: Job, launch: Launch, outcome: Outcome) -> None:
        """Make sure that the run is over for the pool as well, and that nothing of it keeps running or costing."""


class Listener(Protocol):
    """Is notified of changes, for people to see. What it raises is logged and does not disturb the job."""

    def changed(self, job: Job, message: str) -> None:
        """Something happened: an attempt was launched, ended, moved."""

    def watched(self, job: Job, heartbeat: Heartbeat | None) -> None:
        """The supervisor took a look; called every few seconds."""
