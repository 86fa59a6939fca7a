"""A node of an attempt that is not its first: it trains with the others, and owns nothing.

    wait for the first node → restore the commit it began with → prepare → start the workload → follow → leave

It holds no claim, commits nothing and writes one record, its report, by which the first node knows that it lives. It
passes on what its machine announces, stops its workload when the first node stops, and leaves when the attempt is over,
taken over by another one, or when the first node is silent.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections.abc import Callable
from concurrent.futures import Future, wait
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from crucible.agent.cost_meter import CostMeter
from crucible.agent.exit_classification import blame
from crucible.agent.notices import Notice
from crucible.agent.plan import AttemptPlan, Scratch
from crucible.agent.states import Phase
from crucible.agent.workload import Workload, WorkloadEnd
from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.restore import fetch
from crucible.contract import step_name
from crucible.errors import CheckpointError, CrucibleError, FencedOut, MachineUnfit, RecordDamaged, StoreError
from crucible.jobs.job import Attempt
from crucible.jobs.records import EndReason, NodeReport, Notification, Outcome, Rendezvous
from crucible.store.retry import persist, wait_at_most

T = TypeVar("T")

OWNER_SILENT_SECONDS = 45.0
"""Without a heartbeat of the first node, as far as the store could be read: the supervisor gives it up by then."""
START_SECONDS = 1800.0
"""How long to wait for the first node to take the attempt up and restore."""
RESTORE_SECONDS = 120.0
LINGER_SECONDS = 1800.0
"""How long to wait for the attempt's end after that of the own workload: a store that stays away would not report it,
and the machine costs money."""
LOOK_SECONDS = 0.5
WAITING = "waiting"


@dataclass(frozen=True)
class _Owner:
    """The first node, by its records."""

    phase: str = ""
    left: str = ""
    """Why there is nothing more to do; empty while the attempt runs."""


def run_member(attempt: Attempt, plan: AttemptPlan, log: Callable[[str], None]) -> None:
    """Take part in an attempt as node `plan.nodes.rank` until it is over. Raises nothing of what it can report."""
    member = _Member(attempt, plan, log)
    records = threading.Thread(target=member.keep_records, name="records", daemon=True)
    records.start()
    try:
        member.run()
    finally:
        member.close()
        records.join(plan.heartbeat_seconds)


class _Member:
    def __init__(self, attempt: Attempt, plan: AttemptPlan, log: Callable[[str], None]) -> None:
        self._attempt, self._plan, self._log = attempt, plan, log
        self._node = plan.nodes.rank
        self._scratch = Scratch.of(plan.scratch / f"node-{self._node}", attempt)
        self._over, self._changed = threading.Event(), threading.Event()
        self._owner = _Owner()
        self._report = NodeReport(sequence=0, phase=WAITING)
        self._meter: CostMeter | None = None
        """Follows this machine's price."""
        self._workload: Workload | None = None
        self._stopping = False
        self._logged: set[str] = set()

    def close(self) -> None:
        """Kill what is left of the workload, and end the thread of the records."""
        self._over.set()
        self._changed.set()
        if self._workload is not None:
            self._workload.kill()

    # The thread of this node's life

    def run(self) -> None:
        try:
            self._report_machine()
            meeting = self._wait_for_rendezvous()
            if meeting is None:
                return
            with self._scratch.own():
                end = self._train(meeting)
                if end is not None:
                    self._report_end(end)
                    self._until(lambda: False, LINGER_SECONDS)
        except Exception as error:  # noqa: BLE001 - the first node learns of it and decides
            self._log(f"node {self._node} failed: {error}")
            self._report_end(WorkloadEnd(blame(error), str(error) or repr(error), 1))
            self._until(lambda: False, LINGER_SECONDS)
        self._log(f"node {self._node} leaves: {self._owner.left or 'it was asked to stop'}")

    def _report_machine(self) -> None:
        """An attempt costs the sum over its nodes: say which machine this is, and what it costs."""
        if self._plan.claim is None:
            return
        try:
            claim = self._plan.claim()
        except CrucibleError as error:  # the bill then takes it for a machine like the first one
            self._log_once(f"the machine's price is not known: {error}")
            return
        self._update(instance=claim.instance, usd_per_hour=claim.usd_per_hour)
        if claim.usd_per_hour is not None:
            self._meter = CostMeter(claim.usd_per_hour)

    def _wait_for_rendezvous(self) -> Rendezvous | None:
        """Where to meet, as soon as the first node has published it; None when this node is not needed."""
        found: Rendezvous | None = None

        def published() -> bool:
            nonlocal found
            try:
                found = self._attempt.read_rendezvous()
            except RecordDamaged:
                raise  # waiting does not help
            except StoreError:
                return False
            return found is not None

        if not self._until(published, START_SECONDS) or found is None:
            return None
        if self._node >= found.nodes:
            self._owner = _Owner(left=f"the attempt trains on {found.nodes} nodes")
            return None
        return found

    def _train(self, meeting: Rendezvous) -> WorkloadEnd | None:
        """Restore, prepare and train; the workload's end, or None when the attempt was over before."""
        self._set_phase(Phase.RESTORING)
        restored = self._while_looking(self._restore)
        if restored is None:
            return None
        self._set_phase(Phase.PREPARING)
        nodes = replace(self._plan.nodes, count=meeting.nodes, processes=meeting.processes)
        plan = replace(self._plan, nodes=nodes)
        command = self._while_looking(lambda: plan.prepare(self._scratch))
        if command is None:
            return None
        [resume_from] = restored
        environment = plan.workload_environment(
            self._attempt.job.job_id, self._scratch, resume_from, command.environment, meeting
        )
        workload = Workload(command.arguments, environment, command.cwd or plan.cwd, self._log)
        self._workload = workload
        self._set_phase(Phase.TRAINING)
        if not self._until(lambda: not workload.running()):
            workload.kill()
            return None
        return workload.end()

    def _while_looking(self, work: Callable[[], T]) -> T | None:
        """What `work` returns, which may take its time in a thread of its own; None when there is no more to do."""
        doing: Future[T] = Future()

        def do() -> None:
            try:
                doing.set_result(work())
            except BaseException as error:  # noqa: BLE001 - raised by whoever waits
                doing.set_exception(error)

        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(do,), name="preparing", daemon=True).start()
        return doing.result() if self._until(lambda: bool(wait([doing], LOOK_SECONDS).done)) else None

    def _restore(self) -> tuple[Path | None]:
        """The very commit that the first node began with; the path is None where it began with none."""
        if problem := self._plan.machine_problem():
            raise MachineUnfit(problem)
        pause = wait_at_most(RESTORE_SECONDS)
        start = persist(self._attempt.read_start, pause)
        if start is None:
            raise FencedOut(f"attempt {self._attempt.number} was superseded before it had begun")
        if start.from_attempt is None:
            return (None,)
        checkpoints = Checkpoints(self._attempt.job)
        found = next(
            (c for c in persist(checkpoints.list, pause) if (c.step, c.attempt) == (start.step, start.from_attempt)),
            None,
        )
        target = self._scratch.resume / step_name(start.step)
        problem = "it is gone" if found is None else persist(lambda: fetch(checkpoints, found, target), pause)
        if problem is not None:
            raise CheckpointError(f"the checkpoint of step {start.step} cannot be restored here: {problem}")
        return (target,)

    def _until(self, done: Callable[[], bool], seconds: float | None = None) -> bool:
        """Wait, and act on notices and on what the first node does, until `done`; False when there is no more to do."""
        deadline = None if seconds is None else time.monotonic() + seconds
        while not done():
            if self._owner.left or (self._workload is None and self._stopping):
                return False
            if deadline is not None and time.monotonic() > deadline:
                self._owner = replace(self._owner, left=f"nothing happened for {seconds:.0f} s")
                return False
            self._look()
            time.sleep(LOOK_SECONDS)
        return True

    def _look(self) -> None:
        for source in self._plan.sources:
            try:
                notice = source.poll()
            except Exception as error:  # noqa: BLE001 - a source that is broken must not end the training
                self._log_once(f"{type(source).__name__}, a source of notices, does not work: {error!r}")
                continue
            if notice is not None and notice.stop:
                self._handle_notice(notice)
        if self._owner.phase == Phase.STOPPING:
            self._stop_workload(Notice("node", "the attempt saves and stops"))
        if self._meter is not None and self._plan.current_price is not None:
            price = self._meter.follow(self._plan.current_price)
            if price is not None:
                self._update(usd_per_hour=price)

    def _handle_notice(self, notice: Notice) -> None:
        if self._report.notice is None:
            self._log(f"node {self._node}: {notice.reason}")
            deadline = None if notice.deadline is None else datetime.fromtimestamp(notice.deadline, UTC)
            noted = Notification(source=notice.source, reason=notice.reason, deadline=deadline)
            self._update(notice=noted, notice_end_reason=notice.end_reason)
        self._stop_workload(notice)

    def _stop_workload(self, notice: Notice) -> None:
        if not self._stopping:
            self._stopping = True
            try:
                self._scratch.write_stop_reason(notice)
            except OSError as error:  # a full disk, say: it stops all the same, without the reason
                self._log_once(f"the reason to stop cannot be written: {error}")
            if self._workload is not None:
                self._workload.ask_to_stop()

    def _report_end(self, end: WorkloadEnd) -> None:
        lines = list(end.last_lines)
        self._update(end_reason=end.end_reason, message=end.message, exit_code=end.exit_code, last_lines=lines)
        self._set_phase(Phase.ENDED)

    # The thread of the records

    def keep_records(self) -> None:
        """Write this node's report, and read the first node's records."""
        sequence, silent, moved_at, looked_at = 0, 0.0, -1, time.monotonic()
        while True:
            self._changed.clear()
            sequence += 1
            try:
                self._attempt.write_node_report(self._node, self._report.model_copy(update={"sequence": sequence}))
                heartbeat, outcome = self._attempt.read_heartbeat(), self._attempt.read_outcome()
                if outcome is None:
                    self._attempt.require_current()
            except FencedOut as error:
                self._leave(str(error))
            except RecordDamaged as error:
                self._log_once(str(error))
            except StoreError:
                looked_at = time.monotonic()  # a store that is away says nothing about the first node
            except Exception as error:  # noqa: BLE001 - without its reports this node would be taken for dead
                self._log_once(str(error) or repr(error))
            else:
                now = time.monotonic()
                beat = heartbeat.sequence if heartbeat else -1
                silent = 0.0 if beat != moved_at or heartbeat is None else silent + now - looked_at
                moved_at, looked_at = beat, now
                self._owner = replace(self._owner, phase=heartbeat.phase if heartbeat else "")
                if outcome is not None:
                    self._leave(_over(outcome))
                elif silent > OWNER_SILENT_SECONDS:
                    self._leave(f"no heartbeat of the first node for {silent:.0f} s")
            if self._over.is_set():
                return
            self._changed.wait(self._plan.heartbeat_seconds)

    def _leave(self, why: str) -> None:
        if not self._owner.left:
            self._owner = replace(self._owner, left=why)

    def _log_once(self, line: str) -> None:
        if line not in self._logged:
            self._logged.add(line)
            self._log(f"node {self._node}: {line}")

    def _set_phase(self, phase: str) -> None:
        self._update(phase=phase)

    def _update(self, **changes: object) -> None:
        self._report = self._report.model_copy(update={**changes, "at": datetime.now(UTC)})
        self._changed.set()


def _over(outcome: Outcome) -> str:
    return "the training is done" if outcome.end_reason is EndReason.COMPLETED else f"the attempt {outcome.label}"
