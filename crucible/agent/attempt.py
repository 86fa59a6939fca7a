"""One attempt on this machine, from its claim to its outcome.

    claim → restore the newest commit → start the workload → carry commits, beat, watch → stop or done → outcome

The caller's thread starts the workload and waits; a stop request that reaches it as an exception (Prefect raises one
for SIGTERM) is taken for what it is. One more thread listens to the notice sources, one beats and looks at the job's
records, one carries checkpoints: a store that hangs must not keep a notice waiting.
"""

from __future__ import annotations

import contextvars
import itertools
import math
import queue
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar

from crucible.agent.cost_meter import CostMeter
from crucible.agent.exit_classification import blame, verdict
from crucible.agent.metrics import MetricsFile, MetricsRelay, PrintedMetrics, numbers
from crucible.agent.notices import Notice, limit_reached
from crucible.agent.observer import Journal, Observer
from crucible.agent.plan import AttemptPlan, Scratch
from crucible.agent.restoring import restore_newest
from crucible.agent.saving import Saving
from crucible.agent.workload import Workload, WorkloadEnd
from crucible.errors import FencedOut, StoreError
from crucible.jobs.job import Attempt
from crucible.jobs.records import Claim, EndReason, Heartbeat, Limits, Outcome
from crucible.store.retry import persist, wait_at_most

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
"""How long a workload may take to save when nobody named a deadline."""
LEAST_SECONDS = 4.0
"""What is left at least when a notice comes, whatever the clocks say."""
FINAL_UPLOAD_SECONDS = 300.0
"""How long the last commit may be retried when nobody named a deadline."""
RESTORE_SECONDS = 120.0
"""How long a store that fails is asked again for the checkpoint to resume from."""
RECORD_SECONDS = 60.0
"""How long a store that fails is asked again to take the outcome."""


def run_attempt(attempt: Attempt, plan: AttemptPlan, observer: Observer) -> Outcome:
    """Run the attempt to its end and return the outcome that is on record.

    Raises `FencedOut` when the attempt cannot be claimed (another process has it, or a newer one exists), `StoreError`
    when the store fails to the end, and whatever `plan.prepare` raises, with the outcome already recorded.
    """
    return _AttemptRun(attempt, plan, observer).run()


class _AttemptRun:
    def __init__(self, attempt: Attempt, plan: AttemptPlan, observer: Observer) -> None:
        self.attempt, self.plan = attempt, plan
        self.journal = Journal(observer)
        self.observer = self.journal.observer
        self.scratch = Scratch.of(plan.scratch, attempt)
        self.meter = CostMeter(plan.launch.usd_per_hour)
        self._price_remark = ""
        self.phase = "claiming"
        self.step = 0
        self.start_step = 0
        self.first_step_after: float | None = None
        self.latest: dict[str, float] = {}
        self.notice: Notice | None = None
        self.kill_at = math.inf
        self.ends_at = math.inf
        self.fenced: FencedOut | None = None
        self.workload: Workload | None = None
        self.saving: Saving | None = None
        self._end: WorkloadEnd | None = None
        self._failure: Exception | None = None
        self._trained = False
        self._asked = False
        self._inbox: queue.Queue[Notice | FencedOut] = queue.Queue()
        self._over = threading.Event()
        self._metrics = MetricsFile(self.scratch.metrics_file)
        self._relay = MetricsRelay(attempt)
        self._spent_before = 0.0
        self._limits = Limits()
        # The observer hears from four threads; the caller's context variables (whose run?) hold in all of them.
        self._threads = [
            threading.Thread(target=contextvars.copy_context().run, args=(work,), name=work.__name__, daemon=True)
            for work in (self._listen, self._watch)
        ]

    def run(self) -> Outcome:
        claim = self.plan.claim() if self.plan.claim else Claim(number=self.attempt.number)
        self._through_interrupts(lambda: self.attempt.take(claim))
        if claim.usd_per_hour is not None:
            self.meter = CostMeter(claim.usd_per_hour)
        self._price_remark = claim.price_remark
        try:
            return self._through_interrupts(self._to_the_end)
        finally:
            self._through_interrupts(self._leave)

    def _to_the_end(self) -> Outcome:
        """Everything after the claim. An interrupt leaves it anywhere; entered again, it goes on where it was."""
        if not self._trained:
            try:
                self._arrive()
                self._end = self._train()
            except FencedOut as error:
                self.fenced = error
            except Exception as error:  # noqa: BLE001 - raised below, once it is on record
                self._failure = error
            self._trained = True
        if self._failure is not None:
            self._record(blame(self._failure), str(self._failure) or repr(self._failure), exit_code=None)
            raise self._failure
        return self._conclude(self._end)

    def _leave(self) -> None:
        self._over.set()
        if self.workload:
            self.workload.kill()
        self.scratch.remove()

    # From the claim to the workload's end

    def _arrive(self) -> None:
        remark = f"; {self._price_remark}" if self._price_remark else ""
        self.observer.event("claimed", f"attempt {self.attempt.number} of {self.attempt.job.job_id} runs here{remark}")
        patience = wait_at_most(RESTORE_SECONDS)
        self._spent_before = persist(self.attempt.job.cost_usd, patience)
        self._limits = persist(self.attempt.job.read_limits, patience)
        for thread in self._threads:
            if thread.ident is None:
                thread.start()
        if self.workload is None:
            self.scratch.clear()

    def _train(self) -> WorkloadEnd | None:
        """None when the stop came before the workload was started."""
        if self.workload is None:
            self.phase = "restoring"
            if self._drain_inbox():
                return None
            resume_from = self._restore()
            self.phase = "preparing"
            command = self.plan.prepare(self.scratch)
            if self._drain_inbox():
                return None
            self.phase = "starting"
            self._start(command, resume_from)
        return self._wait()

    def _start(self, command: Sequence[str], resume_from: Path | None) -> None:
        self.saving = Saving(
            self.attempt,
            self.scratch.checkpoints,
            self.scratch.control_file,
            self.plan.save,
            on_commit=self.journal.committed,
            on_trouble=self.journal.trouble,
        )
        self.saving.start(self.start_step)
        printed = (
            PrintedMetrics(self.plan.printed_metrics, self.scratch.metrics_file) if self.plan.printed_metrics else None
        )

        def hear(line: str) -> None:
            self.observer.log(line)
            if printed:
                try:
                    printed.hear(line)
                except OSError as error:
                    self.journal.trouble("metrics", f"printed metrics cannot be kept: {error}")

        self.workload = Workload(
            command,
            self.plan.workload_environment(self.attempt.job.job_id, self.scratch, resume_from),
            self.plan.cwd,
            hear,
        )

    def _restore(self) -> Path | None:
        restored = restore_newest(
            self.attempt, self.scratch.root / "resume", self.observer, RESTORE_SECONDS, self._drain_inbox
        )
        self.start_step = self.step = restored[0].step if restored else 0
        return restored[1] if restored else None

    def _wait(self) -> WorkloadEnd:
        assert self.workload is not None
        self.phase = "training"
        while self.workload.running():
            self._drain_inbox(wait_seconds=0.2)
            self._read_metrics()
            if self.saving and self.saving.fenced:
                self.fenced = self.saving.fenced
            if self.fenced:
                self.workload.kill()
            elif time.monotonic() > self.kill_at:
                self.journal.trouble("workload", "the workload ignored the request to stop and was killed")
                self.workload.kill()
                self.kill_at = math.inf
        return self.workload.end()

    # Stopping

    def _drain_inbox(self, wait_seconds: float = 0.0) -> bool:
        """Act on what the watching thread found; True when the attempt has to stop."""
        with suppress(queue.Empty):
            item = self._inbox.get(timeout=wait_seconds) if wait_seconds else self._inbox.get_nowait()
            if isinstance(item, FencedOut):
                self.fenced = item
            else:
                self._heed(item)
        return self.notice is not None or self.fenced is not None

    def _heed(self, notice: Notice) -> None:
        """Act on a notice and record it; the first that says stop counts, a later one can only bring the deadline
        nearer. What has to be done comes first: telling it may be interrupted."""
        if notice.stop:
            self.notice = self.notice or notice
            if not self._asked:
                self.phase = "saving"
                try:
                    self.scratch.leave_word(notice)
                except OSError as error:
                    self.journal.trouble("scratch", f"the reason to stop could not be written: {error}")
                if self.workload:
                    self.workload.ask_to_stop()
                    self._asked = True
            self.kill_at = min(self.kill_at, self._last_moment(notice))
        self.journal.notice(notice)

    def _last_moment(self, notice: Notice) -> float:
        """Monotonic seconds at which the workload must be gone so that the last good commit still gets through."""
        now = time.monotonic()
        if notice.deadline is None:
            return now + PATIENCE_SECONDS
        # A machine that is still there after its end has a clock that is ahead: some time is left all the same.
        left = max(LEAST_SECONDS, notice.deadline - time.time())
        self.ends_at = min(self.ends_at, now + left)
        upload = 1.5 * max(self.saving.figures.upload_seconds, default=1.0) + 1.0 if self.saving else 1.0
        return now + left - min(upload, 0.6 * left)

    def _through_interrupts(self, action: Callable[[], T]) -> T:
        """Do it; after an interrupt heed what it means, which may be interrupted itself, and do it again."""
        interrupted = False
        while True:
            try:
                if interrupted:
                    self._heed(self.plan.on_interrupt())
                    interrupted = False
                return action()
            except self.plan.interrupts:
                interrupted = True

    # The threads that watch

    def _listen(self) -> None:
        heard: set[Notice] = set()
        while not self._over.is_set():
            for source in self.plan.sources:
                try:
                    self._pass_on(source.poll(), heard)
                except Exception as error:  # noqa: BLE001 - one broken source must not silence the others
                    self.journal.trouble(type(source).__name__, f"a source of notices does not work: {error!r}")
            self._over.wait(self.plan.look_seconds)

    def _watch(self) -> None:
        heard: set[Notice] = set()
        for sequence in itertools.count(1):
            next_beat = time.monotonic() + self.plan.beat_seconds
            try:
                self._follow_price()
                self._beat(sequence)
                self._pass_on(self._stop_requested() or self._limit_reached(), heard)
                self.attempt.require_current()
            except FencedOut as error:
                self._inbox.put(error)
                return
            except StoreError as error:
                self.journal.trouble("store", f"no heartbeat could be written: {error}")
            except Exception as error:  # noqa: BLE001 - without heartbeats the attempt would be given up for lost
                self.journal.trouble("watching", f"a beat went wrong: {error!r}")
            if self._over.wait(max(0.0, next_beat - time.monotonic())):
                return

    def _pass_on(self, notice: Notice | None, heard: set[Notice]) -> None:
        if notice is not None and notice not in heard:
            heard.add(notice)
            self._inbox.put(notice)

    def _beat(self, sequence: int) -> None:
        heartbeat = Heartbeat(
            sequence=sequence,
            phase=self.phase,
            step=self.step,
            total_steps=self.plan.total_steps,
            committed_step=self.saving.committed_step if self.saving else self.start_step,
            seconds=round(self.meter.seconds(), 3),
            cost_usd=self.meter.usd(),
            usd_per_hour=self.meter.usd_per_hour,
            first_step_after_seconds=self.first_step_after,
            metrics=self.latest,
            saving=self.saving.figures.as_record() if self.saving else {},
        )
        self.attempt.write_heartbeat(heartbeat)
        self._relay.send()
        self.observer.beat(heartbeat)

    def _follow_price(self) -> None:
        """A spot price may change while the machine runs: bill, cap and estimate go on with the new one."""
        if self.plan.current_price and (price := self.meter.follow(self.plan.current_price)) is not None:
            self.observer.event("price", f"the machine now costs ${price:.4g} per hour")

    def _stop_requested(self) -> Notice | None:
        request = self.attempt.read_stop_request()
        return Notice("supervisor", request.reason, end_reason=request.end_reason) if request else None

    def _limit_reached(self) -> Notice | None:
        """The job's own money or time is used up; looked up anew, since a person may raise it meanwhile."""
        limits = self.attempt.job.read_limits()
        if self.notice is None:  # those that made it stop are remembered
            self._limits = limits
        seconds_to_save = self.saving.figures.durable if self.saving else 0.0
        reserve = self.meter.usd_per_hour / 3600 * (seconds_to_save + 2 * self.plan.beat_seconds)
        return limit_reached(
            limits, self._spent_before + self.meter.usd() + reserve, self.attempt.job.read_spec().created_at
        )

    # The end

    def _conclude(self, end: WorkloadEnd | None) -> Outcome:
        self.phase = "committing"
        self._read_metrics()
        exit_code = end.exit_code if end else None
        if self.saving and not self.fenced:
            self.saving.finish(*self._last_call())
            self.fenced = self.saving.fenced
        if self.fenced:
            return self._record(EndReason.SUPERSEDED, str(self.fenced), exit_code)
        committed = self.saving.committed_step if self.saving else self.start_step
        reason, message = verdict(end, self.notice, self.plan.launch.stop_at_step, committed)
        failure = self.saving.failure if self.saving else None
        if failure is not None:
            trouble = f"the last checkpoint could not be committed: {failure}"
            self.journal.trouble("store", trouble)
            if reason is EndReason.COMPLETED:  # nothing counts as done that is not in the store
                reason, message = blame(failure), f"the workload is done, but {trouble}"
        return self._record(reason, message, exit_code)

    def _last_call(self) -> tuple[float, float]:
        """Monotonic seconds until which a failing upload is tried again, and one that is on its way is waited for."""
        now = time.monotonic()
        if math.isinf(self.ends_at):
            return now + FINAL_UPLOAD_SECONDS, math.inf
        latest = max(now, self.ends_at - 1.0)
        return latest, latest

    def _record(self, reason: EndReason, message: str, exit_code: int | None) -> Outcome:
        outcome = Outcome(
            end_reason=reason,
            message=message,
            step=self.step,
            committed_step=self.saving.committed_step if self.saving else self.start_step,
            exit_code=exit_code,
            seconds=round(self.meter.seconds(), 3),
            cost_usd=self.meter.usd(),
            usd_per_hour=self.meter.usd_per_hour,
            first_step_after_seconds=self.first_step_after,
            notifications=self.journal.notifications,
            saving=self.saving.figures.as_record() if self.saving else {},
            limits=self._limits,
        )
        with suppress(StoreError):
            self._relay.send()
        standing = persist(lambda: self.attempt.end(outcome), wait_at_most(RECORD_SECONDS))
        with suppress(StoreError):  # once more, if the store would not take them before
            self._relay.send()
        if reason is EndReason.SUPERSEDED:
            standing = outcome  # what this process did, whatever was decided about it meanwhile
        self.observer.event("ended", f"{standing.end_reason.words}: {standing.message}", end_reason=standing.end_reason)
        return standing

    # Small things

    def _read_metrics(self) -> None:
        for values, line in self._metrics.read_new():
            self._relay.add(line)
            step = values.get("step")
            if not isinstance(step, int):
                continue
            found = numbers(values)
            if step > self.start_step and self.first_step_after is None:
                self.first_step_after = round(self.meter.seconds(), 3)
            self.step = max(self.step, step)
            if "checkpoint_stall_seconds" in found and self.saving:
                self.saving.measured(found["checkpoint_stall_seconds"], found.get("checkpoint_write_seconds", 0.0))
            self.latest = self.latest | {k: v for k, v in found.items() if not k.startswith("checkpoint_")}
            self.observer.metrics(step, found)
