"""One attempt on this machine, from its claim to its outcome.

    claim → restore the newest commit → start the workload → carry commits, beat, watch → stop or done → outcome

The caller's thread starts the workload and waits; a stop request that reaches it as an exception (Prefect raises one
for SIGTERM) is taken for what it is. One more thread listens to the notice sources, one beats and looks at the job's
records, one carries checkpoints: a store that hangs must not keep a notice waiting.
"""

from __future__ import annotations

import contextvars
import hashlib
import itertools
import json
import math
import os
import queue
import shutil
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import TypeVar

from crucible.agent.metrics import MetricsFile, PrintedMetrics, numbers
from crucible.agent.notices import Notice, NoticeSource
from crucible.agent.observer import Guarded, Observer
from crucible.agent.saving import SavePolicy, Saving
from crucible.agent.workload import Workload, WorkloadEnd
from crucible.checkpoints import Checkpoint, Checkpoints, persist, wait_at_most
from crucible.errors import FencedOut, ObjectMissing, SourceUnreachable, StoreError
from crucible.jobs import Attempt, Job
from crucible.records import Claim, EndReason, Heartbeat, Launch, Limits, Notification, Outcome, Start

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


@dataclass(frozen=True)
class Scratch:
    """The attempt's folder on this machine; nothing in it outlives the attempt."""

    root: Path

    @property
    def checkpoints(self) -> Path:
        return self.root / "checkpoints"

    @property
    def metrics_file(self) -> Path:
        return self.root / "metrics.jsonl"

    @property
    def control_file(self) -> Path:
        return self.root / "control.json"

    @property
    def stop_reason_file(self) -> Path:
        return self.root / "stop-reason.json"


@dataclass
class AttemptPlan:
    """How to run an attempt here."""

    prepare: Callable[[Scratch], Sequence[str]]
    """Gets the machine ready (datasets, config files) and returns the workload's command."""
    scratch: Path
    launch: Launch
    save: SavePolicy = field(default_factory=SavePolicy)
    sources: Sequence[NoticeSource] = ()
    environment: Mapping[str, str] = field(default_factory=lambda: dict(os.environ))
    cwd: Path = field(default_factory=Path.cwd)
    claim: Callable[[], Claim] | None = None
    total_steps: int | None = None
    printed_metrics: str | None = None
    interrupts: tuple[type[BaseException], ...] = (KeyboardInterrupt,)
    """Exceptions that mean "stop", raised in the calling thread by whoever handles signals there."""
    on_interrupt: Callable[[], Notice] = lambda: Notice("signal", "this process was asked to stop")
    beat_seconds: float = 5.0
    look_seconds: float = 1.0


def run_attempt(attempt: Attempt, plan: AttemptPlan, observer: Observer) -> Outcome:
    """Run the attempt to its end and return the outcome that is on record.

    Raises `FencedOut` when the attempt cannot be claimed (another process has it, or a newer one exists), `StoreError`
    when the store fails to the end, and whatever `plan.prepare` raises, with the outcome already recorded.
    """
    return _AttemptRun(attempt, plan, observer).run()


class _AttemptRun:
    def __init__(self, attempt: Attempt, plan: AttemptPlan, observer: Observer) -> None:
        self.attempt, self.plan = attempt, plan
        self.observer = Guarded(observer, self._trouble)
        self.scratch = Scratch(plan.scratch / _place(attempt.job) / f"attempt-{attempt.number:04d}")
        self.began = time.monotonic()
        self.phase = "claiming"
        self.step = 0
        self.start_step = 0
        self.first_step_after: float | None = None
        self.latest: dict[str, float] = {}
        self.notifications: list[Notification] = []
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
        self._troubles: set[str] = set()
        self._metrics = MetricsFile(self.scratch.metrics_file)
        self._metrics_sequence = 0
        self._unsent_metrics: list[bytes] = []
        self._sending = threading.Lock()
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
            self._record(_blame(self._failure), str(self._failure) or repr(self._failure), exit_code=None)
            raise self._failure
        return self._conclude(self._end)

    def _leave(self) -> None:
        self._over.set()
        if self.workload:
            self.workload.kill()
        shutil.rmtree(self.scratch.root, ignore_errors=True)

    # From the claim to the workload's end

    def _arrive(self) -> None:
        self.observer.event("claimed", f"attempt {self.attempt.number} of {self.attempt.job.job_id} runs here")
        patience = wait_at_most(RESTORE_SECONDS)
        self._spent_before = persist(self.attempt.job.cost_usd, patience)
        self._limits = persist(lambda: self.attempt.job.limits, patience)
        for thread in self._threads:
            if thread.ident is None:
                thread.start()
        if self.workload is None:
            self._clear_scratch()

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
            on_commit=self._committed,
            on_trouble=self._trouble,
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
                    self._trouble("metrics", f"printed metrics cannot be kept: {error}")

        self.workload = Workload(command, self._environment(resume_from), self.plan.cwd, hear)

    def _restore(self) -> Path | None:
        began = time.monotonic()
        damaged: list[str] = []

        def report(checkpoint: Checkpoint, problem: str) -> None:
            damaged.append(f"{checkpoint.name}: {problem}")
            self.observer.event(
                "damaged", f"checkpoint of step {checkpoint.step} is damaged and passed over: {problem}"
            )

        def restore() -> tuple[Checkpoint, Path] | None:
            damaged.clear()
            return Checkpoints(self.attempt.job).restore(self.scratch.root / "resume", on_damaged=report)

        patience = wait_at_most(RESTORE_SECONDS)
        restored = persist(restore, lambda delay: self._drain_inbox() or patience(delay))
        seconds = time.monotonic() - began
        checkpoint = restored[0] if restored else None
        self.start_step = self.step = checkpoint.step if checkpoint else 0
        start = Start(
            step=self.start_step,
            from_attempt=checkpoint.attempt if checkpoint else None,
            damaged=damaged,
            restore_seconds=round(seconds, 3),
        )
        persist(lambda: self.attempt.begin(start), patience)
        persist(self.attempt.require_current, patience)
        if checkpoint:
            self.observer.event(
                "restored",
                f"resuming from step {checkpoint.step}, committed by attempt {checkpoint.attempt} "
                f"({checkpoint.bytes / 1e6:.1f} MB in {seconds:.1f} s)",
                step=checkpoint.step,
            )
        return restored[1] if restored else None

    def _environment(self, resume_from: Path | None) -> dict[str, str]:
        contract = {
            "CRUCIBLE_JOB_ID": self.attempt.job.job_id,
            "CRUCIBLE_ATTEMPT": str(self.attempt.number),
            "CRUCIBLE_CHECKPOINT_DIR": str(self.scratch.checkpoints),
            "CRUCIBLE_METRICS_FILE": str(self.scratch.metrics_file),
            "CRUCIBLE_CONTROL_FILE": str(self.scratch.control_file),
            "CRUCIBLE_STOP_REASON_FILE": str(self.scratch.stop_reason_file),
        }
        if resume_from:
            contract["CRUCIBLE_RESUME_FROM"] = str(resume_from)
        if self.plan.launch.stop_at_step is not None:
            contract["CRUCIBLE_STOP_AT_STEP"] = str(self.plan.launch.stop_at_step)
        own = {key: value for key, value in self.plan.environment.items() if key != "CRUCIBLE_RESUME_FROM"}
        return own | contract

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
                self._trouble("workload", "the workload ignored the request to stop and was killed")
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
                self._leave_word(notice)
                if self.workload:
                    self.workload.ask_to_stop()
                    self._asked = True
            self.kill_at = min(self.kill_at, self._last_moment(notice))
        self._notify(notice.source, notice.reason, notice.deadline)
        self.observer.event("notice", notice.reason, source=notice.source, deadline=notice.deadline, stop=notice.stop)

    def _leave_word(self, notice: Notice) -> None:
        """Tell the workload why it is asked to stop; it stops without that as well."""
        word = {"source": notice.source, "reason": notice.reason, "deadline": notice.deadline}
        try:
            self.scratch.stop_reason_file.parent.mkdir(parents=True, exist_ok=True)
            self.scratch.stop_reason_file.write_text(json.dumps(word))
        except OSError as error:
            self._trouble("scratch", f"the reason to stop could not be written: {error}")

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
                    self._trouble(type(source).__name__, f"a source of notices does not work: {error!r}")
            self._over.wait(self.plan.look_seconds)

    def _watch(self) -> None:
        heard: set[Notice] = set()
        for sequence in itertools.count(1):
            next_beat = time.monotonic() + self.plan.beat_seconds
            try:
                self._beat(sequence)
                self._pass_on(self._stop_requested() or self._limit_reached(), heard)
                self.attempt.require_current()
            except FencedOut as error:
                self._inbox.put(error)
                return
            except StoreError as error:
                self._trouble("store", f"no heartbeat could be written: {error}")
            except Exception as error:  # noqa: BLE001 - without heartbeats the attempt would be given up for lost
                self._trouble("watching", f"a beat went wrong: {error!r}")
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
            seconds=round(self._seconds(), 3),
            cost_usd=self._cost(),
            first_step_after_seconds=self.first_step_after,
            metrics=self.latest,
            saving=self.saving.figures.as_record() if self.saving else {},
        )
        self.attempt.beat(heartbeat)
        self._send_metrics()
        self.observer.beat(heartbeat)

    def _stop_requested(self) -> Notice | None:
        request = self.attempt.stop_request
        return Notice("supervisor", request.reason, end_reason=request.end_reason) if request else None

    def _limit_reached(self) -> Notice | None:
        """The job's own money or time is used up; looked up anew, since a person may raise it meanwhile."""
        limits = self.attempt.job.limits
        if self.notice is None:  # those that made it stop are remembered
            self._limits = limits
        if limits.max_cost_usd is not None:
            save = self.saving.figures.durable_seconds if self.saving else 0.0
            reserve = self.plan.launch.usd_per_hour / 3600 * (save + 2 * self.plan.beat_seconds)
            if self._spent_before + self._cost() + reserve >= limits.max_cost_usd:
                reason = f"the job's budget of ${limits.max_cost_usd:g} is used up"
                return Notice("budget", reason, end_reason=EndReason.BUDGET)
        if limits.max_hours is not None:
            age = datetime.now(UTC) - self.attempt.job.spec.created_at
            if age.total_seconds() >= limits.max_hours * 3600:
                return Notice("deadline", f"the job's {limits.max_hours:g} hours are over", end_reason=EndReason.BUDGET)
        return None

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
        reason, message = self._verdict(end)
        failure = self.saving.failure if self.saving else None
        if failure is not None:
            trouble = f"the last checkpoint could not be committed: {failure}"
            self._trouble("store", trouble)
            if reason is EndReason.COMPLETED:  # nothing counts as done that is not in the store
                reason, message = _blame(failure), f"the workload is done, but {trouble}"
        return self._record(reason, message, exit_code)

    def _last_call(self) -> tuple[float, float]:
        """Monotonic seconds until which a failing upload is tried again, and one that is on its way is waited for."""
        now = time.monotonic()
        if math.isinf(self.ends_at):
            return now + FINAL_UPLOAD_SECONDS, math.inf
        latest = max(now, self.ends_at - 1.0)
        return latest, latest

    def _verdict(self, end: WorkloadEnd | None) -> tuple[EndReason, str]:
        stop_at = self.plan.launch.stop_at_step
        committed = self.saving.committed_step if self.saving else self.start_step
        if end is not None and end.end_reason is EndReason.COMPLETED:
            return end.end_reason, end.message
        if self.notice is not None and (end is None or end.end_reason is not EndReason.FAILED):
            return self.notice.end_reason, self.notice.reason
        assert end is not None
        if end.end_reason is EndReason.INTERRUPTED and stop_at is not None and committed >= stop_at:
            return EndReason.PAUSED, f"trained to step {committed} as asked"
        return end.end_reason, end.message

    def _record(self, reason: EndReason, message: str, exit_code: int | None) -> Outcome:
        outcome = Outcome(
            end_reason=reason,
            message=message,
            step=self.step,
            committed_step=self.saving.committed_step if self.saving else self.start_step,
            exit_code=exit_code,
            seconds=round(self._seconds(), 3),
            cost_usd=self._cost(),
            first_step_after_seconds=self.first_step_after,
            notifications=self.notifications,
            saving=self.saving.figures.as_record() if self.saving else {},
            limits=self._limits,
        )
        with suppress(StoreError):
            self._send_metrics()
        standing = persist(lambda: self.attempt.end(outcome), wait_at_most(RECORD_SECONDS))
        with suppress(StoreError):  # once more, if the store would not take them before
            self._send_metrics()
        if reason is EndReason.SUPERSEDED:
            standing = outcome  # what this process did, whatever was decided about it meanwhile
        self.observer.event("ended", f"{standing.end_reason.words}: {standing.message}", end_reason=standing.end_reason)
        return standing

    # Small things

    def _read_metrics(self) -> None:
        for values, line in self._metrics.read_new():
            self._unsent_metrics.append(line)
            step = values.get("step")
            if not isinstance(step, int):
                continue
            found = numbers(values)
            if step > self.start_step and self.first_step_after is None:
                self.first_step_after = round(self._seconds(), 3)
            self.step = max(self.step, step)
            if "checkpoint_stall_seconds" in found and self.saving:
                self.saving.measured(found["checkpoint_stall_seconds"], found.get("checkpoint_write_seconds", 0.0))
            self.latest = self.latest | {k: v for k, v in found.items() if not k.startswith("checkpoint_")}
            self.observer.metrics(step, found)

    def _send_metrics(self) -> None:
        with self._sending:
            count = len(self._unsent_metrics)
            if count:
                lines = b"\n".join(self._unsent_metrics[:count]) + b"\n"
                self.attempt.append_metrics(self._metrics_sequence, lines)
                self._metrics_sequence += 1
                del self._unsent_metrics[:count]

    def _committed(self, checkpoint: Checkpoint, seconds: float) -> None:
        self._troubles.discard("store")
        self.observer.event(
            "commit",
            f"step {checkpoint.step} committed ({checkpoint.bytes / 1e6:.1f} MB in {seconds:.1f} s)",
            step=checkpoint.step,
            bytes=checkpoint.bytes,
            seconds=round(seconds, 3),
        )

    def _trouble(self, source: str, message: str) -> None:
        """Tell once, until it is over, what does not go as it should."""
        if source not in self._troubles:
            self._troubles.add(source)
            self._notify(source, message)
            self.observer.event("trouble", message, source=source)

    def _notify(self, source: str, reason: str, deadline: float | None = None) -> None:
        when = datetime.fromtimestamp(deadline, UTC) if deadline is not None else None
        self.notifications.append(Notification(source=source, reason=reason, deadline=when))

    def _clear_scratch(self) -> None:
        """Start empty, and remove what killed attempts of this job left on this machine."""
        shutil.rmtree(self.scratch.root.parent, ignore_errors=True)
        self.scratch.checkpoints.mkdir(parents=True)

    def _seconds(self) -> float:
        return time.monotonic() - self.began

    def _cost(self) -> float:
        return round(self._seconds() * self.plan.launch.usd_per_hour / 3600, 6)


def _place(job: Job) -> str:
    """The job's folder among the scratch folders of this machine; jobs of one name in two stores get two."""
    return f"{job.job_id}-{hashlib.sha256(job.root.uri.encode()).hexdigest()[:8]}"


def _blame(error: Exception) -> EndReason:
    """Whether the same may go well at another time or place, or is the user's to mend."""
    passing = isinstance(error, StoreError | SourceUnreachable) and not isinstance(error, ObjectMissing)
    return EndReason.INTERRUPTED if passing else EndReason.FAILED
