"""What a supervisor works with: its job's records, retried while the store is away, and everybody who is notified.

Also every wait of the supervisor: a person's request to stop ends each of them as `StopRequested`.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import TypeVar

from crucible.checkpoints.commits import Checkpoints
from crucible.errors import StoreError
from crucible.jobs.job import Job
from crucible.jobs.records import Outcome, StopRequest, Supervisor, now
from crucible.store.retry import persist
from crucible.supervision.attempt_policy import Declare
from crucible.supervision.launcher import Hint, Launcher, Listener, PoolSays
from crucible.supervision.placement_policy import PlacementPolicy
from crucible.supervision.retry_policy import Placement, Timeouts
from crucible.supervision.snapshot import SUPERVISOR, AttemptView, JobSnapshot, SnapshotReader

T = TypeVar("T")

GIVE_UP_SECONDS = 3.0
"""A stopped job does not wait longer than this for a store that does not answer."""

logger = logging.getLogger(__name__)


class StopRequested(Exception):
    """A person wants the job to stop."""

    def __init__(self, request: StopRequest) -> None:
        super().__init__(request.reason)
        self.request = request


@dataclass
class SupervisionContext:
    """What a supervisor is given, and what it does to records, pools and listeners."""

    job: Job
    launcher: Launcher
    placements: Sequence[Placement]
    listener: Listener
    flow_run_id: str = ""
    stop_at_step: int | None = None
    to_the_end: bool = False
    """Whether an attempt that stopped at a step, as asked before, goes on to the end now."""
    placement_policy: PlacementPolicy | None = None
    """What knows better than the order of the placements where to go, if anything does."""
    timeouts: Timeouts = field(default_factory=Timeouts)
    over_budget: Callable[[], str | None] = lambda: None
    """Why the job has to save and stop because of a budget it shares with others; asked before launches and every
    `timeouts.placement_review`."""
    stop_requested: Callable[[], StopRequest | None] = lambda: None
    """Asked between two looks: whether a person wants the job to stop. A signal may say so as well, see `stop`."""
    logger: logging.Logger | logging.LoggerAdapter[logging.Logger] = logger
    """Where an error of the listener is logged."""
    sleep: Callable[[float], None] = time.sleep
    clock: Callable[[], float] = time.monotonic
    wall_clock: Callable[[], datetime] = now
    """For the records; how long something takes is measured by `clock`."""

    def __post_init__(self) -> None:
        self.supervisor: Supervisor | None = None
        self.attempts_before_restart = 0
        """Attempts that no longer count: the job had ended, and a person has started it again."""
        self.live: AttemptView | None = None
        """The attempt that was not over at the last look."""
        self.stopping = False
        self._reader = SnapshotReader(self.job, self.clock)
        self._warned: set[str] = set()
        self._give_up_at: float | None = None

    # Records

    def become_supervisor(self) -> None:
        """Record this process as the job's newest supervisor; the one before steps aside at its next look."""
        self.supervisor = self.persist(lambda: self.job.supervise(self.flow_run_id))
        self._reader = SnapshotReader(self.job, self.clock)

    def look(self, on_failure: Callable[[], None] = lambda: None) -> JobSnapshot:
        """Read the job's records; `on_failure` is called for each read that is going to be retried.

        Raises `FencedOut` when another supervisor has taken over, `StopRequested` when a person wants the job to stop.
        """
        return self.persist(self._look, on_failure)

    def read(self) -> JobSnapshot:
        """The same, without asking who else supervises the job or wants it to stop."""
        return self.persist(self._reader.read)

    def _look(self) -> JobSnapshot:
        snapshot = self._reader.read()
        if self.supervisor is not None and snapshot.newest_supervisor > self.supervisor.number:
            self.job.require_supervisor(self.supervisor)
        self.live = snapshot.live
        for warning in snapshot.warnings:
            self.notify_once(f"goes on without a damaged record: {warning}")
        if (request := snapshot.stop_request or self.stop_requested()) is not None:
            raise StopRequested(request)
        return snapshot

    def outcome(self, declared: Declare, view: AttemptView | None = None) -> Outcome:
        """With what is known of the attempt's progress and cost; the newest commit counts, heartbeats or not."""
        newest = next(iter(self.persist(lambda: Checkpoints(self.job).list())), None)
        beat = view.heartbeat if view else None
        committed = newest.step if newest else 0
        return Outcome(
            end_reason=declared.end_reason,
            message=declared.message,
            decided_by=SUPERVISOR,
            ended_at=self.wall_clock(),
            committed_step=committed,
            step=max(committed, beat.step if beat else 0),
            seconds=beat.seconds if beat else 0.0,
            cost_usd=beat.cost_usd if beat else 0.0,
            usd_per_hour=beat.usd_per_hour if beat else None,
            further_instances=beat.further_instances if beat else [],
            first_step_after_seconds=beat.first_step_after_seconds if beat else None,
            saving=beat.saving if beat else {},
        )

    def age_hours(self, snapshot: JobSnapshot) -> float:
        """Since the job was created, by this machine's time of day."""
        return (self.wall_clock() - snapshot.created_at).total_seconds() / 3600

    @property
    def waits_for(self) -> frozenset[str]:
        """Pools whose machines the placement policy waits for as long as it takes."""
        return self.placement_policy.waits_for if self.placement_policy else frozenset()

    # Waiting

    def persist(self, action: Callable[[], T], on_failure: Callable[[], None] = lambda: None) -> T:
        """Do it, again and again while the store is away: without records nothing can be decided.

        Raises `StopRequested` when a person wants the job to stop meanwhile; once it stops, a store that is away is
        given up.
        """
        reported = False

        def report(error: StoreError) -> None:
            nonlocal reported
            on_failure()
            if not reported and not self.stopping:
                self.notify(f"the store does not answer, waiting: {error}")
                reported = True

        def pause(seconds: float) -> bool:
            if self.stopping:
                self._give_up_at = self._give_up_at or self.clock() + GIVE_UP_SECONDS
                if self.clock() >= self._give_up_at:
                    return True
            self.wait(min(seconds, 1.0))
            return False

        return persist(action, pause, on_failure=report)

    def wait(self, seconds: float) -> None:
        """Raises `StopRequested` when a person wants the job to stop."""
        self.sleep(seconds)
        if not self.stopping and (request := self.stop_requested()) is not None:
            raise StopRequested(request)

    # Pools and listeners

    def hint(self, view: AttemptView) -> Hint:
        """What the attempt's pool believes of it."""
        return self.launcher.hint(self.job, view.launch) if view.launch else Hint(PoolSays.UNKNOWN)

    def retire(self, view: AttemptView, outcome: Outcome) -> None:
        """Make sure that the attempt is over for its pool as well."""
        if view.launch is not None:
            self.launcher.retire(self.job, view.launch, outcome)

    def notify(self, message: str) -> None:
        """Send the message to the listener."""
        self.show(lambda: self.listener.changed(self.job, message))

    def notify_once(self, message: str, finding: str = "") -> None:
        """The same, for a `finding` (by default the message) that is there again at every look."""
        if (finding or message) not in self._warned:
            self._warned.add(finding or message)
            self.notify(message)

    def show(self, notify: Callable[[], None]) -> None:
        """Call the listener. Whatever it raises, the job goes on without being seen."""
        try:
            notify()
        except Exception:
            self.logger.exception("job %s: what happens cannot be shown", self.job.job_id)
