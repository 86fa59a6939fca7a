"""Supervision: launches a job's attempts, watches their records, and carries out what the policies decide.

    one look           `SnapshotReader.read`: everything that is on record, typed
    what follows       `attempt_policy.judge` for an attempt that is not over, `retry_policy.decide` for one that is
    here               launch, wait, end the job; `watch.py` watches an attempt, `stopping.py` stops it

Everything it knows is in the job's records, so a second supervisor carries on where the first was killed. Several
supervisors of one job do no harm: the newest counts (`Job.supervise`), every decision is a create-only record that the
others find, and launching is idempotent.
"""

from __future__ import annotations

import random
from contextlib import suppress
from dataclasses import dataclass, replace

from crucible.errors import ObjectMissing, RecordDamaged, StoreError, StoreRefused
from crucible.jobs.records import EndReason, Launch, StopRequest
from crucible.jobs.status import JobState, JobStatus, status_of
from crucible.store import store_option
from crucible.supervision.attempt_policy import same_refusals
from crucible.supervision.context import StopRequested, SupervisionContext
from crucible.supervision.retry_policy import Decision, History, decide, retry_delay
from crucible.supervision.snapshot import JobSnapshot
from crucible.supervision.stopping import ask_newest_attempt_to_stop, stop_live_attempt
from crucible.supervision.watch import AttemptWatch

_ATTEMPTS_STILL_COUNT = {JobState.RUNNING, JobState.COMPLETED, JobState.BUDGET_STOP}
"""After a budget stop what counts is whether the limits were raised, not that someone started the job again."""


@dataclass
class Supervision(SupervisionContext):
    """Supervises one job until it has an end: `Supervision(job, launcher, placements, listener).run()`."""

    def run(self) -> JobStatus:
        """Launch and watch attempts until the job ends; the status returned is also on record.

        A damaged record, or a store that denies access, ends the job as failed. Raises `FencedOut` when another
        supervisor has taken over.
        """
        try:
            self.become_supervisor()
            self.attempts_before_restart = self._count_attempts_before_restart()
            self._record(JobState.RUNNING, "supervised")
            return self._to_the_end()
        except StopRequested as stop:
            return self.stop(stop.request, self.timeouts.save)
        except (RecordDamaged, ObjectMissing, StoreRefused) as error:
            reason = f"{error}; then `crucible jobs continue {self.job.job_id}{store_option(self.job.root)}`"
            ask_newest_attempt_to_stop(self, StopRequest(end_reason=EndReason.INTERRUPTED, reason=reason))
            return self._end(JobState.FAILED, reason)

    def stop(self, request: StopRequest, wait_seconds: float) -> JobStatus:
        """End the job for now: its attempt saves and stops, and is waited for that long at most.

        Ends within seconds where there is nothing to save, where nothing is left that could, or where the store does
        not answer.
        """
        stop_live_attempt(self, request, wait_seconds)
        status = self._record(JobState.after_request(request), request.reason)
        if self.supervisor is not None:
            with suppress(StoreError):
                self.job.forget_stop_request(self.supervisor.name)
        return status

    def _to_the_end(self) -> JobStatus:
        watch = AttemptWatch(self)
        while True:
            snapshot = self.look()
            if snapshot.live is not None:
                watch.until_over(snapshot.live)
                continue
            decision = self._decide(snapshot)
            if decision.state is not JobState.RUNNING:
                return self._end(decision.state, decision.reason)
            self._pause(decision.pause_seconds * random.uniform(0.5, 1.5))
            self._launch(snapshot.next_number, decision)

    def _count_attempts_before_restart(self) -> int:
        try:
            status = self.persist(lambda: status_of(self.job))
        except RecordDamaged as error:
            self.notify(f"goes on without a damaged record: {error}")
            return 0
        if status is None or status.state in _ATTEMPTS_STILL_COUNT:
            return status.attempts_before_restart if status else 0
        if status.state is JobState.PAUSED and (self.to_the_end or self.stop_at_step is not None):
            return status.attempts_before_restart  # it goes on to its next rung, if it is not there already
        return len(self.persist(self.job.attempts))

    def _decide(self, snapshot: JobSnapshot) -> Decision:
        counted = snapshot.attempts[self.attempts_before_restart :]
        ended = [view.ended for view in counted if view.ended is not None]
        last = ended[-1].outcome if ended else None
        wanted = self.stop_at_step or 0
        if last and last.end_reason is EndReason.PAUSED and (self.to_the_end or last.committed_step < wanted):
            return Decision(JobState.RUNNING, "goes on to the end" if self.to_the_end else f"goes on to step {wanted}")
        decision = decide(
            History(
                ended=[entry for entry in ended if not (entry.missed and entry.pool in self.waits_for)],
                limits=snapshot.limits,
                pools=[place.pool for place in self.placements],
                attempts=len(snapshot.attempts),
                spent_usd=snapshot.spent_usd,
                age_hours=self.age_hours(snapshot),
                over_budget=self.over_budget(),
                timeouts=self.timeouts,
            )
        )
        if self.placement_policy is None or decision.state is not JobState.RUNNING:
            return decision
        placed = self.placement_policy.next(counted, decision)
        if not ended or not ended[-1].missed:
            return placed
        # Not at once: a pool that refuses must not be asked without end.
        pool = self.placements[placed.placement].pool
        refused = same_refusals(counted, pool, ended[-1].outcome.message)
        delay = retry_delay(max(1, refused), self.timeouts)
        return replace(placed, pause_seconds=max(placed.pause_seconds, delay))

    def _pause(self, seconds: float) -> None:
        """Sleep, but not through another supervisor's start or a person's request to stop."""
        end = self.clock() + seconds
        while (left := end - self.clock()) > 0:
            self.wait(min(left, 1.0))
            self.look()

    def _launch(self, number: int, decision: Decision) -> None:
        placement = self.placements[decision.placement]
        launch = Launch(
            number=number,
            pool=placement.pool,
            instance=placement.instance,
            nodes=placement.nodes,
            usd_per_hour=placement.usd_per_hour,
            mtbf_seconds=placement.mtbf_seconds,
            reason=decision.reason,
            stop_at_step=self.stop_at_step,
            decided_at=self.wall_clock(),
            decided_by=f"supervisor {self._number}",
        )
        standing = self.persist(lambda: self.job.decide(launch))
        self.notify(f"attempt {number} goes to {standing.pool}: {standing.reason}")

    @property
    def _number(self) -> int:
        return self.supervisor.number if self.supervisor else 0

    def _end(self, state: JobState, reason: str) -> JobStatus:
        status = self._record(state, reason)
        self.notify(f"job {state}: {reason}")
        return status

    def _record(self, state: JobState, reason: str) -> JobStatus:
        status = JobStatus(
            state=state,
            reason=reason,
            supervisor=self._number,
            flow_run_id=self.flow_run_id,
            attempts_before_restart=self.attempts_before_restart,
        )
        try:
            self.persist(lambda: self.job.store.write_model("status.json", status))
        except StoreError as error:
            if state is JobState.RUNNING:
                raise
            self.notify(f"that the job is {state} could not be recorded: {error}")
        return status
