"""One attempt on this machine, from its claim to its outcome.

    claim → restore the newest commit → start the workload → carry commits, beat, watch → stop or done → outcome

The caller's thread starts the workload and waits; a stop request that reaches it as an exception (Prefect raises one
for SIGTERM) is taken for what it is. One more thread watches the notice sources, another carries checkpoints.
"""

from __future__ import annotations

import contextvars
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
from typing import Any, Protocol, TypeVar

from crucible.agent.metrics import MetricsFile, PrintedMetrics, numbers
from crucible.agent.notices import Notice, NoticeSource
from crucible.agent.saving import SavePolicy, Saving
from crucible.agent.workload import Workload, WorkloadEnd
from crucible.checkpoints import Checkpoint, Checkpoints
from crucible.errors import CrucibleError, FencedOut, StoreError
from crucible.jobs import Attempt, Claim, EndReason, Heartbeat, Launch, Limits, Notification, Outcome, Start

T = TypeVar("T")

PATIENCE_SECONDS = 120.0
"""How long a workload may take to save when nobody named a deadline."""
FINAL_UPLOAD_SECONDS = 300.0
"""How long the last commit may be retried when nobody named a deadline."""


class Observer(Protocol):
    """Hears what happens, for people to see. Must return quickly; what it raises is not caught."""

    def log(self, line: str) -> None:
        """A line the workload printed."""

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """What the workload reported at a step."""

    def beat(self, heartbeat: Heartbeat) -> None:
        """A sign of life that has just been written."""

    def event(self, kind: str, message: str, **details: Any) -> None:
        """`claimed`, `restored`, `damaged`, `notice`, `commit`, `trouble`, `ended`."""


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
    when the store fails to the end, and whatever `plan.prepare` raises, with the outcome already recorded as failed.
    """
    return _AttemptRun(attempt, plan, observer).run()


class _AttemptRun:
    def __init__(self, attempt: Attempt, plan: AttemptPlan, observer: Observer) -> None:
        self.attempt, self.plan, self.observer = attempt, plan, observer
        self.scratch = Scratch(plan.scratch / attempt.job.job_id / f"attempt-{attempt.number:04d}")
        self.began = time.monotonic()
        self.phase = "claiming"
        self.step = 0
        self.start_step = 0
        self.first_step_after: float | None = None
        self.latest: dict[str, float] = {}
        self.notifications: list[Notification] = []
        self.notice: Notice | None = None
        self.kill_at = math.inf
        self.fenced: FencedOut | None = None
        self.workload: Workload | None = None
        self.saving: Saving | None = None
        self._inbox: queue.Queue[Notice | FencedOut] = queue.Queue()
        self._over = threading.Event()
        self._troubles: set[str] = set()
        self._metrics = MetricsFile(self.scratch.metrics_file)
        self._metrics_sequence = 0
        self._unsent_metrics: list[bytes] = []
        self._sending = threading.Lock()
        self._spent_before = 0.0
        self._limits = Limits()

    def run(self) -> Outcome:
        self.attempt.take(self.plan.claim() if self.plan.claim else Claim(number=self.attempt.number))
        self.observer.event("claimed", f"attempt {self.attempt.number} of {self.attempt.job.job_id} runs here")
        self._clear_scratch()
        self._spent_before = self.attempt.job.cost_usd()
        self._limits = self.attempt.job.limits
        # The observer hears from three threads; the caller's context variables (whose run?) hold in all of them.
        context = contextvars.copy_context()
        threading.Thread(target=context.run, args=(self._watch,), name="watching", daemon=True).start()
        try:
            try:
                end = self._train()
            except FencedOut as error:
                self.fenced, end = error, None
            except CrucibleError as error:
                self._record(EndReason.FAILED, str(error), exit_code=None)
                raise
            except self.plan.interrupts:  # between two steps of the above
                self._heed(self.plan.on_interrupt())
                end = None
            return self._conclude(end)
        finally:
            self._over.set()
            if self.workload:
                self.workload.kill()
            shutil.rmtree(self.scratch.root, ignore_errors=True)

    # From the claim to the workload's end

    def _train(self) -> WorkloadEnd | None:
        """None when the stop came before the workload was started."""
        try:
            self.phase = "restoring"
            resume_from = self._restore()
            self.phase = "preparing"
            command = self.plan.prepare(self.scratch)
        except self.plan.interrupts:
            self._heed(self.plan.on_interrupt())
        if self.notice is not None or self._drain_inbox():
            return None
        self.saving = Saving(
            self.attempt,
            self.scratch.checkpoints,
            self.scratch.control_file,
            self.plan.save,
            on_commit=self._committed,
            on_trouble=self._trouble,
        )
        self.saving.start(self.start_step)
        self.phase = "starting"
        printed = (
            PrintedMetrics(self.plan.printed_metrics, self.scratch.metrics_file) if self.plan.printed_metrics else None
        )

        def hear(line: str) -> None:
            if printed:
                printed.hear(line)
            self.observer.log(line)

        self.workload = Workload(command, self._environment(resume_from), self.plan.cwd, hear)
        return self._through_interrupts(self._wait)

    def _restore(self) -> Path | None:
        began = time.monotonic()
        damaged: list[str] = []

        def report(checkpoint: Checkpoint, problem: str) -> None:
            damaged.append(f"{checkpoint.name}: {problem}")
            self.observer.event(
                "damaged", f"checkpoint of step {checkpoint.step} is damaged and passed over: {problem}"
            )

        restored = Checkpoints(self.attempt.job).restore(self.scratch.root / "resume", on_damaged=report)
        seconds = time.monotonic() - began
        checkpoint = restored[0] if restored else None
        self.start_step = self.step = checkpoint.step if checkpoint else 0
        self.attempt.begin(
            Start(
                step=self.start_step,
                from_attempt=checkpoint.attempt if checkpoint else None,
                damaged=damaged,
                restore_seconds=round(seconds, 3),
            )
        )
        self.attempt.require_current()
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
            if self.saving and self.saving.failure:
                raise self.saving.failure
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
        """Record a notice; the first that says stop is acted on, a later one can only bring the deadline nearer."""
        self._notify(notice.source, notice.reason, notice.deadline)
        self.observer.event("notice", notice.reason, source=notice.source, deadline=notice.deadline, stop=notice.stop)
        if not notice.stop:
            return
        if self.notice is None:
            self.notice = notice
            self.phase = "saving"
            self.scratch.stop_reason_file.parent.mkdir(parents=True, exist_ok=True)
            self.scratch.stop_reason_file.write_text(
                json.dumps({"source": notice.source, "reason": notice.reason, "deadline": notice.deadline})
            )
            if self.workload:
                self.workload.ask_to_stop()
        self.kill_at = min(self.kill_at, self._last_moment(notice))

    def _last_moment(self, notice: Notice) -> float:
        """Monotonic seconds at which the workload must be gone so that the last good commit still gets through."""
        if notice.deadline is None:
            return time.monotonic() + PATIENCE_SECONDS
        left = max(0.0, notice.deadline - time.time())
        upload = 1.5 * max(self.saving.figures.upload_seconds, default=1.0) + 1.0 if self.saving else 1.0
        return time.monotonic() + left - min(upload, 0.6 * left)

    def _through_interrupts(self, action: Callable[[], T]) -> T:
        while True:
            try:
                return action()
            except self.plan.interrupts:
                self._heed(self.plan.on_interrupt())

    # The watching thread

    def _watch(self) -> None:
        sequence = 0
        next_beat = 0.0
        heard: set[Notice] = set()
        while not self._over.wait(self.plan.look_seconds if sequence else 0.0):
            for source in self.plan.sources:
                notice = source.poll()
                if notice is not None and notice not in heard:
                    heard.add(notice)
                    self._inbox.put(notice)
            if time.monotonic() < next_beat:
                continue
            next_beat = time.monotonic() + self.plan.beat_seconds
            sequence += 1
            try:
                self._beat(sequence)
                notice = self._stop_requested() or self._limit_reached()
                if notice and notice not in heard:
                    heard.add(notice)
                    self._inbox.put(notice)
                self.attempt.require_current()
            except FencedOut as error:
                self._inbox.put(error)
                return
            except StoreError as error:
                self._trouble("store", f"no heartbeat could be written: {error}")

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
        )
        self.attempt.beat(heartbeat)
        self._send_metrics()
        self.observer.beat(heartbeat)

    def _stop_requested(self) -> Notice | None:
        request = self.attempt.stop_request
        return Notice("supervisor", request.reason, end_reason=request.end_reason) if request else None

    def _limit_reached(self) -> Notice | None:
        """The job's own money or time is used up; looked up anew, since a person may raise it meanwhile."""
        limits = self._limits = self.attempt.job.limits
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
        if self.saving and not self.fenced:
            deadline = time.monotonic() + FINAL_UPLOAD_SECONDS
            if self.notice and self.notice.deadline is not None:
                deadline = time.monotonic() + max(0.0, self.notice.deadline - time.time() - 1.0)
            saving = self.saving
            self._through_interrupts(lambda: saving.finish(deadline))
            self.fenced = saving.fenced
        if self.fenced:
            return self._record(EndReason.SUPERSEDED, str(self.fenced), exit_code=end.exit_code if end else None)
        reason, message = self._verdict(end)
        failure = self.saving.failure if self.saving else None
        if failure is not None:
            self._trouble("store", f"the last checkpoint could not be committed: {failure}")
            if reason is EndReason.COMPLETED:
                raise failure
        return self._record(reason, message, exit_code=end.exit_code if end else None)

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
        self._over.set()
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
        self._send_metrics()
        standing = self.attempt.end(outcome)
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
