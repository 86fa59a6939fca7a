"""What people see of an attempt and of a job in Prefect: log lines, events, tags, progress.

Nothing here may disturb the training: whatever the Prefect server refuses or does not answer is left out, and the
records in the store still have it.
"""

from __future__ import annotations

import math
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any
from uuid import UUID

import httpx
from prefect.client.orchestration import get_client
from prefect.events import emit_event
from prefect.exceptions import PrefectException
from prefect.logging import get_logger, get_run_logger
from prefect.runtime import flow_run

from crucible.agent.last_lines import KEPT_LINES
from crucible.errors import RecordDamaged, StoreError
from crucible.formatting import counted, money
from crucible.jobs.job import Attempt, Job
from crucible.jobs.records import EndReason, Heartbeat, JobSpec
from crucible.prefect_compat.live_artifacts import LiveArtifact
from tasks.reporting import JobReport, artifact_key

LIVELY_SECONDS = 600.0
"""As long as somebody may sit and watch."""


@dataclass(frozen=True)
class Rates:
    """How many of something the server gets: in the first ten minutes (`LIVELY_SECONDS`), and later."""

    burst: float
    per_second: float
    later_per_second: float


LINES = Rates(burst=60, per_second=0.5, later_per_second=1 / 120)
"""Of the workload, in the flow run's log; `crucible logs` has all."""
REPEATED = Rates(burst=10, per_second=1 / 60, later_per_second=1 / 7200)
"""Of events that come again and again, commits above all: with flow run, deployment and tags, each takes 13 kB."""
SHOW_SECONDS, LATER_SHOW_SECONDS = 15.0, 60.0
"""Between two versions of the progress, and of the report: each is a request, and the jobs of a team add up.
Nobody sees them sooner, as Prefect's pages do not follow an artifact."""
REPORT_SHARE = 0.01
"""Of one core, at most: drawing the curve again takes its time from a training on the same machine."""

UNAVAILABLE = (httpx.HTTPError, PrefectException, OSError, RuntimeError)
"""What the Prefect client raises when the server is away or says no."""


def emit(kind: str, job_id: str, message: str, **details: Any) -> None:
    """A Prefect event `crucible.<kind>` on the job, related to the flow run it comes from; automations hang on it."""
    related = []
    if flow_run.id:
        related.append({"prefect.resource.id": f"prefect.flow-run.{flow_run.id}", "prefect.resource.role": "flow-run"})
    with suppress(*UNAVAILABLE):
        emit_event(
            f"crucible.{kind}",
            resource={"prefect.resource.id": f"crucible.job.{job_id}", "prefect.resource.name": job_id},
            related=related,
            payload={"message": message, **details},
        )


def job_tags(spec: JobSpec) -> list[str]:
    """Whose work a flow run does and whose money it spends."""
    marks = {"job": spec.job_id, "project": spec.project, "owner": spec.owner}
    return [f"{name}:{value}" for name, value in marks.items() if value]


def add_tags(*tags: str, replacing: tuple[str, ...] = ()) -> None:
    """Add tags to the running flow run; those that begin with one of `replacing` make way.

    The API replaces the whole set, so the union is written: tags of the deployment and of the person stay.
    """
    if not flow_run.id:
        return
    with suppress(*UNAVAILABLE), get_client(sync_client=True) as client:
        run = client.read_flow_run(UUID(flow_run.id))
        kept = {tag for tag in run.tags if not tag.startswith(replacing)} if replacing else set(run.tags)
        if kept | set(tags) != set(run.tags):
            client.update_flow_run(run.id, tags=kept | set(tags))


class Throttle:
    """True when something is to be shown again: less often after a while, and no sooner than `hold` says."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock, self._next, self._began = clock, 0.0, clock()

    def __call__(self) -> bool:
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + (SHOW_SECONDS if now - self._began <= LIVELY_SECONDS else LATER_SHOW_SECONDS)
        return True

    def hold(self, seconds: float) -> None:
        """Not again within so many seconds."""
        self._next = max(self._next, self._clock() + seconds)


class Allowance:
    """A burst, then so many a second, after a while fewer: a training of days must not fill the server's database."""

    def __init__(self, rates: Rates, clock: Callable[[], float] = time.monotonic) -> None:
        self._rates, self._clock = rates, clock
        self._left, self._began = rates.burst, clock()
        self._at = self._began

    def take(self) -> bool:
        """Whether one more may pass now."""
        now = self._clock()
        later = now - self._began > LIVELY_SECONDS
        per_second = self._rates.later_per_second if later else self._rates.per_second
        self._left = min(self._rates.burst, self._left + (now - self._at) * per_second)
        self._at = now
        if self._left < 1:
            return False
        self._left -= 1
        return True


class LineLimit:
    """Lets some of the workload's lines through, and says how many it left out; the store has all of them."""

    def __init__(self, rates: Rates | None = None, clock: Callable[[], float] = time.monotonic) -> None:
        self._allowance, self._left_out = Allowance(rates or LINES, clock), 0
        self._lately: deque[bool] = deque(maxlen=KEPT_LINES)
        self.left_out_in_all = 0

    def left_out_lately(self, lines: int) -> bool:
        """Whether any of the last so many lines was left out."""
        return not all(list(self._lately)[-lines:])

    def pass_on(self, line: str) -> str | None:
        """The line to show, with the number of those left out before it; None to leave this one out, too."""
        shown = self._allowance.take()
        self._lately.append(shown)
        if not shown:
            self._left_out += 1
            self.left_out_in_all += 1
            return None
        left_out, self._left_out = self._left_out, 0
        return f"{line}   [{counted(left_out, 'line')} before this one left out]" if left_out else line


class AttemptObserver:
    """Shows one attempt in its flow run: the workload's lines, a progress artifact, events."""

    def __init__(self, job: Job, number: int, clock: Callable[[], float] = time.monotonic) -> None:
        self.job, self.number = job, number
        self._logger = get_run_logger() if flow_run.id else get_logger("crucible")
        self._limit = LineLimit(clock=clock)
        self._repeated = {kind: Allowance(REPEATED, clock) for kind in ("commit", "trouble", "price")}
        self._progress_due = Throttle(clock)
        self._progress = LiveArtifact(artifact_key("progress", job.job_id), "progress")
        self._spent_before: float | None = None
        self._first_beat: Heartbeat | None = None
        self._latest: Heartbeat | None = None

    def log(self, line: str) -> None:
        shown = self._limit.pass_on(line)
        if shown is not None:
            self._logger.info(shown)

    def metrics(self, step: int, values: dict[str, float]) -> None:
        """Metrics reach people through the report, which reads them from the store."""

    def heartbeat(self, heartbeat: Heartbeat) -> None:
        self._latest = heartbeat
        if self._progress_due():
            self._show_progress()

    def event(self, kind: str, message: str, **details: Any) -> None:
        if kind == "last-lines":
            if self._limit.left_out_lately(len(message.splitlines())):
                self._logger.error("the last lines of the workload:\n%s", message)
            return
        if kind in self._repeated and not self._repeated[kind].take():
            return  # the records have it
        level = self._logger.warning if kind in ("notice", "damaged", "trouble") else self._logger.info
        level(message)
        if kind == "ended":
            if self._limit.left_out_in_all:
                shows = f"crucible logs {self.job.job_id} --attempt {self.number}"
                self._logger.info(f"{self._limit.left_out_in_all} lines were left out here; `{shows}` shows all")
            self._tag_cost()
            if details.get("end_reason") is not EndReason.SUPERSEDED:  # else the next attempt shows its own
                self._show_progress()
        details = {name: value for name, value in details.items() if value is not None}
        emit(kind, self.job.job_id, message, attempt=self.number, **details)

    def _show_progress(self) -> None:
        heartbeat = self._latest
        if heartbeat is None or not heartbeat.total_steps:
            return
        text = f"step {heartbeat.step} of {heartbeat.total_steps}"
        if "train_loss" in heartbeat.metrics:
            text += f", loss {heartbeat.metrics['train_loss']:.4f}"
        text += self._money(heartbeat)
        with suppress(*UNAVAILABLE):
            self._progress.publish(100.0 * heartbeat.step / heartbeat.total_steps, text)

    def _money(self, heartbeat: Heartbeat) -> str:
        """The job's cost so far, and to the end at this attempt's price and speed; nothing where it is free."""
        if not heartbeat.cost_usd:
            return ""
        if self._spent_before is None:
            try:
                before = [_cost(other) for other in self.job.attempts() if other.number != self.number]
                self._spent_before = sum(before) + self.job.stages_usd()
            except RecordDamaged as error:
                self._logger.warning("the job's cost so far is not shown: %s", error)
                self._spent_before = math.nan
            except StoreError:
                return ""
        if math.isnan(self._spent_before):
            return ""
        text = f", {money(self._spent_before + heartbeat.cost_usd)} so far"
        if heartbeat.first_step_after_seconds is None:
            return text
        self._first_beat = self._first_beat or heartbeat
        steps, seconds = heartbeat.step - self._first_beat.step, heartbeat.seconds - self._first_beat.seconds
        if steps <= 0 or not heartbeat.total_steps:
            return text
        left = (heartbeat.total_steps - heartbeat.step) * seconds / steps
        per_hour = heartbeat.usd_per_hour  # follows a spot price that changes
        rate = heartbeat.cost_usd / heartbeat.seconds if per_hour is None else per_hour / 3600
        return f"{text}, about {money(left * rate)} left"

    def _tag_cost(self) -> None:
        with suppress(StoreError):
            outcome = self.job.attempt(self.number).read_outcome()
            if outcome is not None:
                add_tags(f"cost-usd:{outcome.cost_usd:.2f}", replacing=("cost-usd:",))


def _cost(attempt: Attempt) -> float:
    record = attempt.read_outcome() or attempt.read_heartbeat()
    return record.cost_usd if record else 0.0


class JobListener:
    """Shows a job in its supervising flow run: the report artifact, tags, one event for every move."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._logger = get_run_logger() if flow_run.id else get_logger("crucible")
        self._report_due = Throttle(clock)
        self._reports: dict[str, JobReport] = {}

    def changed(self, job: Job, message: str) -> None:
        self._logger.info(message)
        emit("move", job.job_id, message)
        with suppress(StoreError):  # whoever waits for the store reports that it is away
            attempts = len(job.attempts())
            add_tags(f"attempts:{attempts}", f"cost-usd:{job.cost_usd():.2f}", replacing=("attempts:", "cost-usd:"))
            self._publish(job)

    def watched(self, job: Job, heartbeat: Heartbeat | None) -> None:
        if heartbeat is not None and self._report_due():
            began = time.thread_time()
            with suppress(StoreError):
                self._publish(job)
            self._report_due.hold((time.thread_time() - began) / REPORT_SHARE)

    def _publish(self, job: Job) -> None:
        with suppress(*UNAVAILABLE):
            self._reports.setdefault(job.job_id, JobReport(job)).publish()
