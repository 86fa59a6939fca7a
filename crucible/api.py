"""Crucible from Python: start a job, follow it, read what it reported.

    job = crucible.submit("cpu-small", pool="local", max_cost_usd=1.0)
    job  # in a notebook: a small table with the loss curve
    job.wait().val_loss
    job.metrics().plot(x="step", y="train_loss")

It needs the server that `crucible up` starts, or that `PREFECT_API_URL` names; reading a job needs only its store.
`import crucible` imports none of this: each name is loaded when it is used.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from crucible.config import TrainConfig
from crucible.datasets.config import DatasetConfig
from crucible.job_handle import JobHandle
from crucible.jobs.job import Job
from crucible.jobs.names import new_job_id
from crucible.jobs.records import Limits
from crucible.local import access
from crucible.local.flow_runs import start_flow_run
from crucible.local.run_script import open_store, plan_run, require_ready, start_run
from crucible.local.tune_script import plan_sweep
from crucible.run_config import RunConfig
from crucible.script_config import ScriptConfig
from crucible.store import default_store_uri, store_at
from crucible.sweeps import Sweep
from crucible.tune_config import TuneSettings

__all__ = ["job", "submit", "sweep"]

_DEFAULT_PRESET = "cpu-small"


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
        job_name = name or new_job_id("nanogpt")
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
    name = name or new_job_id("tune")
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
