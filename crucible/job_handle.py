"""A job as Python sees it: a handle that waits, monitors, stops and resumes, and its status."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import Checkpoint
from crucible.formatting import UNKNOWN, duration, money
from crucible.jobs.job import Job
from crucible.jobs.metrics import Metrics, merged_metrics
from crucible.jobs.printed import printed_lines
from crucible.jobs.records import EndReason, StopRequest
from crucible.jobs.status import JobState
from crucible.local import access
from crucible.local.continuing import continue_job
from crucible.local.follow import FINAL, Standing, follow
from crucible.local.forking import Changes, fork_job
from crucible.reports.picture import data_uri, loss_curve
from crucible.reports.summary import JobSummary, summarise
from crucible.store import Store
from crucible.supervision.stop_job import stop_job

if TYPE_CHECKING:
    import pandas as pd


@dataclass(frozen=True)
class Status:
    """Where a job stands at one moment; None for what is not known (yet)."""

    state: str
    """waiting, running, completed, paused, budget-stop, cancelled, failed or stopped."""
    message: str
    """What it is doing, or why it ended."""
    pool: str | None
    step: int
    total_steps: int | None
    train_loss: float | None
    val_loss: float | None
    cost_usd: float
    """So far, over all attempts, in US dollars."""
    cost_left_usd: float | None
    """Likely, to the end of training."""
    seconds_left: float | None
    attempts: int
    moved: str
    """Where the current attempt comes from and why, such as `ec2-spot → modal: …`; empty for the first one."""

    @property
    def progress(self) -> float | None:
        """The share of the steps that are done, 0 to 1."""
        return self.step / self.total_steps if self.total_steps else None

    @property
    def ended(self) -> bool:
        """Whether nothing more happens unless somebody resumes the job."""
        return self.state not in ("waiting", "running")


class JobHandle:
    """One job, as `submit` and `job` return it. Every method reads the job's records as they are then."""

    def __init__(self, store: Store, name: str, flow_run_id: str = "") -> None:
        self.name = name
        self._store, self._flow_run_id = store, flow_run_id

    def __repr__(self) -> str:
        return f"JobHandle({self.name!r})"

    def status(self) -> Status:
        """Where the job stands now. Needs no server."""
        summary = self._summary()
        if summary is None:
            return _status(None, "waiting", "nothing on record yet")
        state = summary.state or "waiting"
        return _status(summary, state, summary.reason or (summary.attempts[-1].end if summary.attempts else ""))

    async def monitor(self) -> AsyncIterator[Status]:
        """The status, each time it has changed, until the job has ended. It outlasts an outage of the Prefect server.

        >>> async for status in job.monitor():  # doctest: +SKIP
        ...     print(status.pool, status.progress, status.train_loss, status.cost_usd, status.moved)

        Raises:
            ServiceError: the Prefect server refuses, or no longer has the job's flow run.
        """
        statuses = self._statuses()
        try:
            while (status := await asyncio.to_thread(next, statuses, None)) is not None:
                yield status
        finally:
            await asyncio.to_thread(statuses.close)

    def wait(self, timeout_seconds: float | None = None) -> Status:
        """Wait until the job has ended, and return its last status, whatever that is. It outlasts an outage of the
        Prefect server.

        Raises:
            TimeoutError: it has not ended in time; it goes on.
            ServiceError: the Prefect server refuses, or no longer has the job's flow run.
        """
        until = None if timeout_seconds is None else time.monotonic() + timeout_seconds
        status = self.status()
        for status in self._statuses(every=True):
            if until is not None and not status.ended and time.monotonic() > until:
                raise TimeoutError(f"job {self.name} is still {status.state} after {timeout_seconds:g} s")
        return status

    def metrics(self) -> pd.DataFrame:
        """What the job reported over all its attempts: one row for each step, a column for each metric."""
        return merged_metrics(self._job())

    def checkpoints(self) -> list[Checkpoint]:
        """Every checkpoint that counts, newest first, with its step, losses, files and size."""
        return Checkpoints(self._job()).list()

    def logs(self, follow: bool = False) -> Iterator[str]:
        """The lines that the script printed, all attempts one after another.

        `follow`: go on with new lines as they arrive, until the job has ended.
        """
        return printed_lines(Job(self._store, self.name), lambda: not follow or self.status().ended)

    def stop(self, reason: str = "stopped by a person") -> str:
        """Ask the job to save and stop; returns what happens now. It can be resumed later.

        Raises:
            ConfigError: it is not running.
        """
        return stop_job(self._job(), StopRequest(end_reason=EndReason.CANCELLED, reason=reason)).message

    def resume(
        self,
        max_cost_usd: float | str | None = None,
        max_hours: float | str | None = None,
        max_attempts: int | None = None,
        finish_by: str | None = None,
    ) -> JobHandle:
        """Continue a job that stopped, failed or was cancelled from what it has saved.

        A limit replaces the one before, None leaves it, and `"none"` lifts it. `finish_by` is a new deadline with its
        zone.

        Raises:
            ConfigError: the job is running, or no deployment started it.
        """
        limits = {"max_cost_usd": max_cost_usd, "max_hours": max_hours, "max_attempts": max_attempts}
        self._flow_run_id = continue_job(self._job(), limits, finish_by)
        return self

    def fork(
        self,
        step: int | str = "",
        *,
        name: str = "",
        command: Sequence[str] = (),
        env: Mapping[str, str] | None = None,
        code: str | Path | None = None,
        **settings: Any,
    ) -> JobHandle:
        """Start a new job at a checkpoint of this one, with some settings changed; this one stays as it is.

        >>> job.fork(1200, learning_rate=3e-4).wait().val_loss  # doctest: +SKIP

        Args:
            step: of a checkpoint, or `"best"`; default: the newest.
            name: the new job's; default: this one's with the step behind it.
            command: a script's new command line.
            env: variables of a script that are added or replaced.
            code: a script's folder, packed anew; default: the code that this job had.
            settings: of the training's configuration, or of the script (`total_steps`, …).

        Raises:
            ConfigError: there is no such checkpoint (the message lists those that are there), or it forbids a change.
            ServiceError: the Prefect server did not start it. Where its answer got lost (`StartUnknown`), the new job
                is kept, and the same call with its name starts it once.
        """
        folder = Path(code) if code is not None else None
        changes = Changes(settings=settings, command=list(command), env=env or {}, code=folder)
        made, flow_run = fork_job(self._job(), str(step), changes, name)
        return JobHandle(self._store, made.job_id, flow_run)

    def _repr_html_(self) -> str:
        """A small table with the loss curve, for notebooks."""
        status = self.status()
        rows = {
            "job": self.name,
            "state": f"{status.state}: {status.message}" if status.message else status.state,
            "pool": " ".join(
                part for part in (status.pool or UNKNOWN, f"({status.moved})" if status.moved else "") if part
            ),
            "step": f"{status.step:,}" + (f" of {status.total_steps:,}" if status.total_steps else ""),
            "loss": ", ".join(
                f"{name} {value:.4f}"
                for name, value in (("training", status.train_loss), ("validation", status.val_loss))
                if value is not None
            )
            or UNKNOWN,
            "cost": money(status.cost_usd)
            + (f", about {money(status.cost_left_usd)} to come" if status.cost_left_usd is not None else ""),
            "time left": duration(status.seconds_left) if status.seconds_left is not None else UNKNOWN,
        }
        cells = "".join(f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
        return f"<table>{cells}</table>{self._curve()}"

    def _curve(self) -> str:
        summary = self._summary()
        if summary is None:
            return ""
        starts = {a.number: a.from_step for a in summary.attempts if a.from_step is not None}
        picture = loss_curve(Metrics(Job(self._store, self.name)).rows(), starts)
        return f'<img alt="loss curve" src="{data_uri(picture)}">'

    def _job(self) -> Job:
        return Job.open(self._store, self.name)

    def _summary(self) -> JobSummary | None:
        job = Job(self._store, self.name)
        return summarise(job) if job.store.exists("job.json") else None

    def _statuses(self, every: bool = False) -> Generator[Status, None, None]:
        """Until it has ended; only those that differ from the one before, unless `every`."""
        flow_run = self._flow_run_id or self._supervising_run()
        if not flow_run or self.status().ended:
            yield self.status()
            return
        last = None
        with access.connect_here() as api:
            for standing in follow(api, flow_run, self._store, self.name):
                status = _of_standing(standing)
                if every or status != last:
                    yield status
                last = status

    def _supervising_run(self) -> str:
        supervisor = self._job().read_newest_supervisor()
        return supervisor.flow_run_id if supervisor else ""


def _of_standing(standing: Standing) -> Status:
    summary = standing.summary
    if standing.state not in FINAL:
        running = summary is not None and summary.state is JobState.RUNNING
        return _status(summary, "running" if running else "waiting", standing.unanswered or standing.stage)
    if summary is not None and summary.state not in (None, JobState.RUNNING):
        return _status(summary, summary.state, standing.message)
    return _status(summary, standing.state.lower(), standing.message)


def _status(summary: JobSummary | None, state: str, message: str) -> Status:
    if summary is None:
        return Status(state, message, None, 0, None, None, None, 0.0, None, None, 0, "")
    last = summary.attempts[-1] if summary.attempts else None
    moved = ""
    if last is not None and len(summary.attempts) > 1:
        before = summary.attempts[-2].pool
        moved = f"{before} → {last.pool}: {last.launched_because}" if before != last.pool else last.launched_because
    return Status(
        state=str(state),
        message=message,
        pool=last.pool if last else None,
        step=summary.step,
        total_steps=summary.total_steps,
        train_loss=summary.train_loss,
        val_loss=summary.val_loss,
        cost_usd=summary.cost_usd,
        cost_left_usd=summary.cost_left_usd,
        seconds_left=summary.seconds_left,
        attempts=len(summary.attempts),
        moved=moved,
    )
