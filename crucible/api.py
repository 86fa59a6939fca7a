"""Crucible from Python: start a job, follow it, read what it reported.

    job = crucible.submit("cpu-small", pool="local", max_cost_usd=1.0)
    job  # in a notebook: a small table with the loss curve
    job.wait().val_loss
    job.metrics().plot(x="step", y="train_loss")

It needs the server that `crucible up` starts, or that `PREFECT_API_URL` names; reading a job needs only its store.
`import crucible` imports none of this: each name is loaded when it is used.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING, Any

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.manifest import Checkpoint
from crucible.config import TrainConfig
from crucible.datasets.config import DatasetConfig
from crucible.formatting import UNKNOWN, duration, money
from crucible.jobs.job import Job
from crucible.jobs.metrics import Metrics, merged_metrics
from crucible.jobs.printed import printed_lines
from crucible.jobs.records import EndReason, Limits, StopRequest
from crucible.jobs.status import JobState
from crucible.local import access
from crucible.local.continuing import continue_job
from crucible.local.flow_runs import start_flow_run
from crucible.local.follow import FINAL, Standing, follow
from crucible.local.forking import Changes, fork_job
from crucible.local.run_script import open_store, plan_run, require_ready, start_run
from crucible.local.tune_script import plan_sweep
from crucible.reports.picture import data_uri, loss_curve
from crucible.reports.summary import JobSummary, summarise
from crucible.run_config import RunConfig
from crucible.script_config import ScriptConfig
from crucible.store import Store, default_store_uri, store_at
from crucible.supervision.stop_job import stop_job
from crucible.sweeps import Sweep
from crucible.tune_config import TuneSettings

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["JobHandle", "Status", "job", "submit", "sweep"]

_DEFAULT_PRESET = "cpu-small"


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
        **settings: Any,
    ) -> JobHandle:
        """Start a new job at a checkpoint of this one, with some settings changed; this one stays as it is.

        >>> job.fork(1200, learning_rate=3e-4).wait().val_loss  # doctest: +SKIP

        Args:
            step: of a checkpoint, or `"best"`; default: the newest.
            name: the new job's; default: this one's with the step behind it.
            command: a script's new command line.
            env: variables of a script that are added or replaced.
            settings: of the training's configuration, or of the script (`total_steps`, …).

        Raises:
            ConfigError: there is no such checkpoint (the message lists those that are there), or it forbids a change.
            ServiceError: the Prefect server did not start it. Where its answer got lost (`StartUnknown`), the new job
                is kept, and the same call with its name starts it once.
        """
        changes = Changes(settings=settings, command=list(command), env=env or {})
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


def submit(
    what: str | TrainConfig | ScriptConfig | RunConfig,
    *,
    pool: str | None = None,
    name: str = "",
    folder: str | Path = ".",
    limits: Limits | None = None,
    dataset: DatasetConfig | Mapping[str, Any] | None = None,
    store: str = "default",
    **settings: Any,
) -> JobHandle:
    """Start a job and return a handle to it.

    >>> crucible.submit("shakespeare-char", pool="modal", limits=Limits(max_cost_usd=2))  # doctest: +SKIP
    >>> crucible.submit(ScriptConfig(command=["python", "train.py"]), folder="my-model")  # doctest: +SKIP

    Args:
        what: a preset's name or a `TrainConfig` for Crucible's own trainer; a `ScriptConfig` or `RunConfig` for a
            script of your own, which runs in a copy of `folder`.
        pool: the work pool; for a training also `auto`. Default: that of the `RunConfig`, else `local`.
        name: the job's name, a new one by default. An existing job is continued.
        folder: of the script.
        limits: what may be spent before it stops, saved: dollars, hours, attempts.
        dataset: what to train on, for a training.
        store: name of a `Store` block on the server, or an address.
        settings: further parameters of the deployment `train-nanogpt` (`optimize_for`, `finish_by`, `project`, …), or
            settings of `crucible.yaml` for a script.

    Raises:
        ConfigError: something is wrong with what was asked; nothing was started.
        ServiceError: the Prefect server does not answer, or no worker polls the pool.
    """
    wanted = {} if limits is None else limits.model_dump(include={"max_attempts", "max_cost_usd", "max_hours"})
    with access.connect_here() as api:
        if isinstance(what, ScriptConfig | RunConfig):
            given = {**what.model_dump(exclude_unset=True), **wanted, "store": store, **settings}
            config = RunConfig.parse({**given, **({"pool": pool} if pool else {})})
            run = plan_run(config, Path(folder), name)
            require_ready(api, run)
            return JobHandle(open_store(api, config.store), run.job, start_run(api, run))
        job_name = name or f"nanogpt-{datetime.now():%Y%m%d-%H%M%S}"
        parameters = {**_training(what, dataset), **wanted, "pool": pool or "local", "store": store, **settings}
        opened = open_store(api, store)
        return JobHandle(
            opened, job_name, start_flow_run(api, "train-nanogpt", {**parameters, "job": job_name}, job_name)
        )


def job(name: str, store: str | None = None) -> JobHandle:
    """A job that exists, by its name; `store` is an address, or None for the default store.

    Raises:
        ConfigError: there is no such job.
    """
    opened = store_at(store or default_store_uri())
    Job.open(opened, name)
    return JobHandle(opened, name)


def sweep(
    what: str | Mapping[str, Any],
    store: str | None = None,
    *,
    script: ScriptConfig | RunConfig | None = None,
    folder: str | Path = ".",
    **parameters: Any,
) -> Sweep:
    """A sweep by its id, or a new one over a search space.

    >>> crucible.sweep("tune-3f2a91c0").trials()  # doctest: +SKIP
    >>> crucible.sweep({"learning_rate": {"loguniform": [1e-4, 1e-2]}}, preset="debug", max_trials=9)  # doctest: +SKIP
    >>> own = ScriptConfig(command=["python", "train.py", "--lr={lr}"], metrics="huggingface")  # doctest: +SKIP
    >>> crucible.sweep({"lr": [1e-3, 1e-2]}, script=own, metric="accuracy", goal="max")  # doctest: +SKIP

    Its `trials()` is the leaderboard as a pandas DataFrame. A new sweep is on record as soon as the server has taken it
    up; before that its methods raise `ObjectMissing`.

    Args:
        what: a sweep's id, or the space: by setting a list of choices or a range.
        store: an address (`file://…`, `s3://…`); for a new sweep also the name of a `Store` block.
        script: what trials run, with the settings of the space in braces; None for Crucible's own trainer.
        folder: of the script.
        parameters: for a new sweep: those of the deployment `tune-nanogpt`; of a script the settings of `tune:`
            (`metric`, `goal`, `max_trials`, …) and of `crucible.yaml`.

    Raises:
        ConfigError: there is no such sweep, or the server refuses the parameters.
        ServiceError: the Prefect server does not answer.
    """
    if isinstance(what, str):
        return Sweep.open(store_at(store or default_store_uri()), what)
    name = parameters.pop("sweep", "")
    if script is not None:
        search = {key: parameters.pop(key) for key in TuneSettings.model_fields.keys() & parameters.keys()}
        given = {**script.model_dump(exclude_unset=True), **({"store": store} if store else {}), **parameters}
        planned = plan_sweep(RunConfig.parse({**given, "tune": {**search, "space": dict(what)}}), Path(folder), name)
        with access.connect_here() as api:
            require_ready(api, planned)
            start_run(api, planned)
            return Sweep(open_store(api, planned.config.store), planned.job)
    name = name or f"tune-{datetime.now():%Y%m%d-%H%M%S}"
    given = {**parameters, "space": dict(what), "sweep": name, "store": store or "default"}
    with access.connect_here() as api:
        opened = open_store(api, given["store"])
        start_flow_run(api, "tune-nanogpt", given, name)
    return Sweep(opened, name)


def _training(what: str | TrainConfig, dataset: DatasetConfig | Mapping[str, Any] | None) -> dict[str, Any]:
    parameters: dict[str, Any] = {"preset": what if isinstance(what, str) else _DEFAULT_PRESET}
    if isinstance(what, TrainConfig):
        # The model's shape comes from the weights, unless it was stated.
        parameters["config"] = what.model_dump(mode="json", exclude_none=True, exclude_unset=what.init_from is not None)
    if dataset is not None:
        parsed = dataset if isinstance(dataset, DatasetConfig) else DatasetConfig.parse(dataset)
        parameters["dataset"] = parsed.model_dump(mode="json", exclude_unset=True)
    return parameters


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
