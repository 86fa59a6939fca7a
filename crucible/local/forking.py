"""Fork a job: start a new one at a committed checkpoint of another, with some of its settings changed."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import httpx
import yaml
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectException
from pydantic import BaseModel, ConfigDict, Field

from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.forking import copy_checkpoint, forked_config
from crucible.checkpoints.restore import choose_checkpoint
from crucible.errors import ConfigError, ServiceError
from crucible.jobs.job import Job, checked_job_id
from crucible.jobs.records import ForkedFrom, JobSpec, now
from crucible.local.continuing import CONFIGURED, SCRIPT, run_again, script_parameters
from crucible.script_config import ScriptConfig


class Changes(BaseModel):
    """What a fork does differently."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    settings: Mapping[str, Any] = Field(default_factory=dict)
    """Of the training's configuration, or of the script (`total_steps`, `output`, …)."""
    command: Sequence[str] = ()
    """A script's new command line; empty: the parent's."""
    env: Mapping[str, str] = Field(default_factory=dict)
    """Variables of a script that are added or replaced."""


def fork_job(parent: Job, which: str = "", changes: Changes | None = None, name: str = "") -> tuple[Job, str]:
    """Start a new job at a commit of `parent`; returns it, and the id of its flow run.

    `which`: a step, `best`, or empty for the newest. The checkpoint is copied before anything else, and nothing of the
    parent is written to. Raises `ConfigError` for a step that is not there, which lists those that are, and for a
    change that the checkpoint forbids.
    """
    before, changes = parent.read_spec(), changes or Changes()
    if before.evaluates:
        raise ConfigError(f"job {parent.job_id} evaluates {before.evaluates}: fork that one")
    checkpoints = Checkpoints(parent)
    chosen = choose_checkpoint(checkpoints, which, f"--from {which or 'newest'}")
    fork = Job(parent.root, name or _free_name(parent, chosen.shown_step))
    checked_job_id(fork.job_id)
    if fork.store.exists("job.json"):
        raise ConfigError(f"job: {fork.job_id!r} exists already; choose a new job name")
    origin = ForkedFrom(job=parent.job_id, step=chosen.step, attempt=chosen.attempt)
    spec = _forked_spec(before, changes, chosen.step).model_copy(
        update={"job_id": fork.job_id, "forked_from": origin, "sweep": "", "created_at": now()}
    )
    parent.root.require_guarantees()
    with tempfile.TemporaryDirectory(prefix="crucible-fork-") as work:
        copy_checkpoint(checkpoints, chosen, fork, spec.config if spec.script is None else None, Path(work))
    Job.create(parent.root, spec)
    try:
        return fork, _start(parent, fork, spec)
    except (ConfigError, ServiceError):  # its name stays free, and its copy takes no room
        fork.delete()
        raise


def _forked_spec(before: JobSpec, changes: Changes, step: int) -> JobSpec:
    if before.script is None:
        if before.config is None:
            raise ConfigError(f"job {before.job_id} has neither a configuration nor a script; start a new job")
        if changes.command or changes.env:
            raise ConfigError(f"job {before.job_id} runs Crucible's own trainer: change its settings with --set")
        return before.model_copy(update={"config": forked_config(before.config, changes.settings, step)})
    if before.config is not None:
        raise ConfigError(f"job {before.job_id} is of an earlier version, which cannot be forked; start a new job")
    return before.model_copy(update={"script": _forked_script(before.script, changes)})


def _forked_script(before: ScriptConfig, changes: Changes) -> ScriptConfig:
    if "checkpoint" in changes.settings:
        raise ConfigError(
            "checkpoint: the copied checkpoint is put back where the parent saved it; leave it out, or start a new job"
        )
    given = {key: yaml.safe_load(value) if isinstance(value, str) else value for key, value in changes.settings.items()}
    command = {"command": list(changes.command)} if changes.command else {}
    env = {"env": {**before.env, **changes.env}}
    return ScriptConfig.parse({**before.model_dump(exclude_unset=True), **env, **command, **given})


def _free_name(parent: Job, step: int) -> str:
    """PARENT-from-STEP, or with a number behind it; a name that no job has."""
    base = f"{parent.job_id[:40]}-from-{step}"
    names = [base, *(f"{base}-{number}" for number in range(2, 1000))]
    return next(name for name in names if not parent.root.exists(f"jobs/{name}/job.json"))


def _start(parent: Job, fork: Job, spec: JobSpec) -> str:
    """As the parent was started, where the server knows; else with what the record says and the defaults."""
    flow = CONFIGURED if spec.script is None else SCRIPT
    supervisor = parent.read_newest_supervisor()
    run = supervisor.flow_run_id if supervisor else ""
    changes: dict[str, Any] = {"job": fork.job_id, "finish_by": ""}
    if spec.script is not None:
        changes |= script_parameters(parent, spec, spec.script, run)
    try:
        return run_again(f"job {parent.job_id}", run, flow, changes)
    except ConfigError:  # started by a program, a sweep, or on another server
        return _start_anew(flow, {**changes, "store": parent.root.uri, "project": spec.project, "owner": spec.owner})


def _start_anew(flow: str, parameters: dict[str, Any]) -> str:
    try:
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name(f"{flow}/{flow}")
            run = client.create_flow_run_from_deployment(deployment.id, parameters=parameters, name=parameters["job"])
    except ObjectNotFound as error:
        raise ServiceError(f"the server has no deployment {flow}/{flow}; run: crucible up") from error
    except (httpx.HTTPError, PrefectException) as error:
        raise ServiceError(f"the Prefect server did not start it: {error}; see crucible doctor") from error
    return str(run.id)


def parse_settings(given: Sequence[str]) -> tuple[dict[str, str], dict[str, str]]:
    """`name=value` pairs as settings, and those of `env.NAME=value` as variables. Raises `ConfigError`."""
    settings, env = {}, {}
    for entry in given:
        name, there, value = entry.partition("=")
        if not there or not name:
            raise ConfigError(f"--set {shlex.quote(entry)} is not of the form name=value")
        if name.startswith("env."):
            env[name.removeprefix("env.")] = value
        else:
            settings[name] = value
    return settings, env
