"""One attempt on this machine, from its claim to its outcome.

    claim → restore the newest commit → prepare → start the workload → carry its commits, watch → stop or done → outcome

`crucible.agent.states` says what follows from what. One thread owns the state and does what follows; it receives events
through a queue. Everything that can take long happens in other threads, which only post events: restoring and
preparing, the workload's end, uploads (`uploads.py`), notices and heartbeats (`watching.py`). The caller's thread waits
for the outcome and turns interrupts (exceptions that Prefect or Ctrl-C raise there) into notices.
"""

from __future__ import annotations

import contextvars
import math
import queue
import threading
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import replace
from pathlib import Path

from crucible.agent.cost_meter import CostMeter
from crucible.agent.exit_classification import classify_exit, committed_step, explain, was_saved
from crucible.agent.metrics import MetricsFile, MetricsRelay, numbers
from crucible.agent.nodes import NodeWatch
from crucible.agent.notices import Notice
from crucible.agent.observer import Guarded, Journal, Observer, Trouble
from crucible.agent.output import OutputLog
from crucible.agent.plan import AttemptPlan, Scratch, WorkloadCommand
from crucible.agent.restoring import restore_newest
from crucible.agent.saving import SaveInterval
from crucible.agent.states import (
    Action,
    Claimed,
    Committed,
    DeadlinePassed,
    Event,
    Failed,
    Fenced,
    Noticed,
    Phase,
    Prepared,
    Restored,
    State,
    WorkloadEnded,
    deadlines,
    transition,
)
from crucible.agent.uploads import Uploads
from crucible.agent.watching import LimitsRead, SpentRead, Status, Watching
from crucible.agent.workload import Workload
from crucible.checkpoints.manifest import Checkpoint
from crucible.errors import FencedOut, MachineUnfit, StoreError
from crucible.jobs.job import Attempt
from crucible.jobs.metrics import is_step
from crucible.jobs.records import Claim, EndReason, Limits, Outcome, Rendezvous
from crucible.store.retry import persist, wait_at_most

FINAL_UPLOAD_SECONDS = 300.0
"""How long the last commit may be retried without a deadline."""
RESTORE_SECONDS = 120.0
"""How long a failing store is retried for the checkpoint to resume from."""
RECORD_SECONDS = 60.0
"""How long a failing store is retried for the claim, and for the outcome."""
OUTPUT_SECONDS = 5.0
"""How long the last of the workload's output may take to the store."""
LOOK_SECONDS = 0.2
"""Between two looks at the workload's metrics."""

Item = Event | Notice | Trouble | LimitsRead | SpentRead
"""What the queue carries: events, notices whose deadline is not on this process's clock yet, news for the records."""


def run_attempt(attempt: Attempt, plan: AttemptPlan, observer: Observer) -> Outcome:
    """Run the attempt to its end and return the outcome that is on record.

    Raises `FencedOut` when the attempt cannot be claimed (another process has it, or a newer one exists), `StoreError`
    when the store fails to the end, and whatever `plan.prepare` raises, with the outcome already recorded.
    """
    return _AttemptRun(attempt, plan, observer).wait()


class _AttemptRun:
    def __init__(self, attempt: Attempt, plan: AttemptPlan, observer: Observer) -> None:
        self.attempt, self.plan = attempt, plan
        self.scratch = Scratch.of(plan.scratch, attempt)
        self._items: queue.SimpleQueue[Item] = queue.SimpleQueue()
        self.observer = Guarded(observer, self._items.put)
        self.journal = Journal(self.observer)
        self.meter = CostMeter(plan.launch.usd_per_hour, nodes=plan.nodes.count)
        self.state = State()
        self.status = Status()
        """What the other threads may read: replaced, never changed."""
        self._entered = threading.Lock()
        self._nodes: NodeWatch | None = None
        if plan.nodes.count > 1:
            self._nodes = NodeWatch(attempt, plan.nodes.count, plan.nodes.join_seconds)
        self._rendezvous: Rendezvous | None = None
        """Where the other nodes meet this one; set while restoring, read once the workload is started."""
        self._over = threading.Event()
        self._outcome: Outcome | None = None
        self._error: BaseException | None = None
        # Below: only the owning thread's
        self._folder = ExitStack()
        self._workload: Workload | None = None
        self._uploads: Uploads | None = None
        self._output: OutputLog | None = None
        self._interval: SaveInterval | None = None
        self._watching: Watching | None = None
        self._metrics = MetricsFile(self.scratch.metrics_file)
        self._relay = MetricsRelay(attempt)
        self._limits = Limits()
        self._command = WorkloadCommand(())
        self._resume_from: Path | None = None
        self._newest: Checkpoint | None = None

    # The caller's thread

    def wait(self) -> Outcome:
        """Wait for the outcome; an interrupt, wherever it strikes, becomes a notice."""
        interrupted = False
        try:
            while True:
                try:
                    if self._over.is_set():
                        break
                    if interrupted:
                        notice = self.plan.on_interrupt()
                        interrupted = False
                        self._items.put(notice)
                    if not self._entered.locked():  # an interrupt may have come before the thread was started
                        self._in_thread(self._own, "attempt")
                    self._over.wait()
                except self.plan.interrupts:
                    interrupted = True
        except BaseException:
            self._over.set()
            self._leave()
            raise
        if self._error is not None:
            raise self._error
        assert self._outcome is not None
        return self._outcome

    # The thread that owns the state

    def _own(self) -> None:
        if not self._entered.acquire(blocking=False):
            return
        try:
            claim = self.plan.claim() if self.plan.claim else Claim(number=self.attempt.number)
            persist(lambda: self.attempt.take(claim), wait_at_most(RECORD_SECONDS, self._over))
            try:
                self._outcome = self._run(claim)
            finally:
                self._leave()
        except BaseException as error:  # noqa: BLE001 - raised in the caller's thread
            self._error = error
        self._over.set()

    def _run(self, claim: Claim) -> Outcome:
        try:
            if claim.usd_per_hour is not None:
                self.meter = CostMeter(claim.usd_per_hour, nodes=self.plan.nodes.count)
            remark = f"; {claim.price_remark}" if claim.price_remark else ""
            self.observer.event(
                "claimed", f"attempt {self.attempt.number} of {self.attempt.job.job_id} runs here{remark}"
            )
            self._watching = Watching(
                self.attempt,
                self.plan,
                self.meter,
                self.observer,
                self._relay,
                lambda: self.status,
                self._items.put,
                self._nodes,
            )
            self._folder.enter_context(self.scratch.own())
            self._handle(Claimed())
            while self.state.phase is not Phase.ENDED:
                self._handle(self._next())
        except Exception as error:  # noqa: BLE001 - raised below, once it is on record
            self.state, _ = transition(self.state, Failed(error))
        return self._conclude()

    def _next(self) -> Item | None:
        """The next item; None after a while without one."""
        if self._over.is_set():
            raise SystemExit("nobody waits for the outcome any more")
        due = {Phase.STOPPING: self.state.kill_at, Phase.COMMITTING: self.state.ends_at - 1.0}
        if time.monotonic() >= due.get(self.state.phase, math.inf):
            return DeadlinePassed()
        with suppress(queue.Empty):
            return self._items.get(timeout=LOOK_SECONDS)
        return None

    def _handle(self, item: Item | None) -> None:
        self._read_metrics()
        match item:
            case None:
                return
            case Trouble(source, message):
                self.journal.trouble(source, message)
                return
            case LimitsRead(limits):
                if self.state.notice is None:  # those that made it stop are remembered
                    self._limits = limits
                return
            case SpentRead(usd):
                self.status = replace(self.status, spent_before_usd=usd)
                return
            case Notice():
                item = deadlines(item, self._longest_upload())
            case Restored(folder=folder):
                self._resume_from = folder
            case Prepared(command):
                self._command = command
            case Committed(checkpoint, seconds):
                self._newest = checkpoint
                if self._interval:
                    self._interval.committed(seconds, checkpoint.bytes)
        self.state, action = transition(self.state, item)
        self._publish()
        try:
            self._act(action)
        except Exception as error:  # noqa: BLE001 - on record as the attempt's failure
            self._handle(Failed(error))
        match item:  # what has to be done comes first, what is shown afterwards
            case Noticed(notice):
                self.journal.notice(notice)
            case Committed(checkpoint, seconds):
                self.journal.committed(checkpoint, seconds)
            case WorkloadEnded(end) if end.last_lines and self.state.notice is None and self.state.fenced is None:
                self.observer.event("last-lines", "\n".join(end.last_lines))

    def _act(self, action: Action | None) -> None:
        match action:
            case Action.RESTORE:
                self._in_thread(lambda: self._post_result(self._restore), "restoring")
            case Action.PREPARE:
                self._in_thread(lambda: self._post_result(self._prepare), "preparing")
            case Action.START:
                self._start()
            case Action.ASK_TO_STOP:
                try:
                    assert self.state.notice is not None
                    self.scratch.write_stop_reason(self.state.notice)
                except OSError as error:
                    self.journal.trouble("scratch", f"the reason to stop could not be written: {error}")
                if self._workload:
                    self._workload.ask_to_stop()
            case Action.KILL:
                if self.state.fenced is None:
                    self.journal.trouble("workload", "the workload ignored the request to stop and was killed")
                if self._workload:
                    self._workload.kill()
            case Action.FINISH_UPLOADS:
                self._finish_uploads()
            case Action.RECORD | None:
                return

    def _publish(self) -> None:
        saving = self._interval.figures.as_record() if self._interval else {}
        step = max(self.status.step, self.state.start_step)
        self.status = replace(self.status, state=self.state, step=step, saving=saving)

    # Steps that run in threads of their own

    def _restore(self) -> Restored:
        if problem := self.plan.machine_problem():
            raise MachineUnfit(problem)
        pause = wait_at_most(RESTORE_SECONDS)
        spent = persist(lambda: self.attempt.job.cost_usd(before=self.attempt.number), pause)
        self._items.put(LimitsRead(persist(self.attempt.job.read_limits, pause)))
        self._items.put(SpentRead(spent))
        restored = restore_newest(self.attempt, self.scratch.resume, self.observer, RESTORE_SECONDS, self._given_up)
        if self._nodes is not None:  # they restore what is on record as this attempt's start
            meeting = self._rendezvous = self.plan.nodes.rendezvous()
            persist(lambda: self.attempt.publish_rendezvous(meeting), pause)
        return Restored(restored[0].step, restored[1]) if restored else Restored(0, None)

    def _prepare(self) -> Prepared:
        return Prepared(self.plan.prepare(self.scratch))

    def _given_up(self) -> bool:
        return self.status.state.phase is Phase.ENDED

    def _post_result(self, step: Callable[[], Restored | Prepared]) -> None:
        try:
            self._items.put(step())
        except FencedOut as error:
            self._items.put(Fenced(error))
        except Exception as error:  # noqa: BLE001 - the owner records and raises it
            self._items.put(Failed(error))

    def _in_thread(self, work: Callable[[], None], name: str) -> None:
        """The caller's context variables (whose run?) hold in every thread."""
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(work,), name=name, daemon=True).start()

    # The workload

    def _start(self) -> None:
        self._interval = SaveInterval(self.plan.save, self.scratch.control_file, self.journal.trouble)
        self._uploads = Uploads(
            self.attempt, self.scratch.checkpoints, self.state.start_step, self.plan.save.keep_last, self._items.put
        )
        command, job_id = self._command, self.attempt.job.job_id
        environment = self.plan.workload_environment(
            job_id, self.scratch, self._resume_from, command.environment, self._rendezvous
        )
        output = self._output = OutputLog(self.attempt, self._items.put)

        def handle_line(line: str) -> None:
            output.add(line)
            self.observer.log(line)

        cwd = command.cwd or self.plan.cwd
        workload = self._workload = Workload(command.arguments, environment, cwd, handle_line)
        self._in_thread(lambda: self._items.put(WorkloadEnded(workload.end())), "workload-end")
        self._uploads.start()

    def _longest_upload(self) -> float:
        return max(self._interval.figures.upload_seconds, default=1.0) if self._interval else 0.0

    def _finish_uploads(self) -> None:
        """A failing upload is retried until the machine goes; without an end in sight, for `FINAL_UPLOAD_SECONDS`."""
        assert self._uploads is not None
        final = time.monotonic() + FINAL_UPLOAD_SECONDS
        self._uploads.finish(final if math.isinf(self.state.ends_at) else self.state.ends_at - 1.0)

    def _read_metrics(self) -> None:
        for values, line in self._metrics.read_new():
            self._relay.add(line)
            step = values.get("step")
            if not is_step(step):
                continue
            found = numbers(values)
            if self._interval:
                self._interval.reported(found)
            self.status = self.status.advanced(step, found, self.state.start_step, self.meter.seconds())
            self._publish()
            self.observer.metrics(step, found)

    # The end

    def _conclude(self) -> Outcome:
        self._read_metrics()
        self.state, notices = explain(self.state, self.plan, self._nodes)
        for notice in notices:
            self.journal.notice(notice)
        reason, message = classify_exit(self.state, self.plan.launch.stop_at_step)
        if self.state.uncommitted is not None:
            self.journal.trouble("store", f"the last checkpoint could not be committed: {self.state.uncommitted}")
        outcome = self._record(reason, message)
        unfit = isinstance(self.state.failure, MachineUnfit)  # nothing went wrong: the outcome says all
        if self.state.failure is not None and self.state.fenced is None and not unfit:
            raise self.state.failure
        return outcome

    def _record(self, reason: EndReason, message: str) -> Outcome:
        while not self._items.empty():
            item = self._items.get()
            if isinstance(item, Trouble):
                self.journal.trouble(item.source, item.message)
        outcome = Outcome(
            end_reason=reason,
            message=message,
            step=self.status.step,
            committed_step=committed_step(self.state, reason, self._newest, self.plan.total_steps),
            exit_code=self.state.end.exit_code if self.state.end else None,
            seconds=round(self.meter.seconds(), 3),
            cost_usd=self.meter.usd(),
            usd_per_hour=self.meter.usd_per_hour,
            further_instances=self._nodes.instances if self._nodes else [],
            first_step_after_seconds=self.status.first_step_after_seconds,
            notifications=self.journal.notifications,
            saving=dict(self.status.saving),
            limits=self._limits,
            saved=was_saved(self.state),
        )
        with suppress(StoreError):
            self._relay.send()
        if self._output:
            self._output.close(OUTPUT_SECONDS)
        standing = persist(lambda: self.attempt.end(outcome), wait_at_most(RECORD_SECONDS))
        with suppress(StoreError):  # once more, if the store would not take them before
            self._relay.send()
        if reason is EndReason.SUPERSEDED:
            standing = outcome  # what this process did, whatever was decided about it meanwhile
        self.observer.event("ended", f"{standing.label}: {standing.message}", end_reason=standing.end_reason)
        return standing

    def _leave(self) -> None:
        if self._watching:
            self._watching.close()
        if self._workload:
            self._workload.kill()
        if self._output:
            self._output.close(0.0)
        self._folder.close()
