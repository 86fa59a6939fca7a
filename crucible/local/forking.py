"""Fork a job: start a new one at a committed checkpoint of another, with some of its settings changed."""

from __future__ import annotations

import shlex
import tempfile
from collections.abc import Callable, Mapping, Sequence
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
from crucible.code.command import check_command
from crucible.code.environments import find_dependencies
from crucible.code.folder import PackedFolder, pack_folder
from crucible.errors import ConfigError, ServiceError, StartUnknown
from crucible.formatting import counted
from crucible.jobs.job import Job
from crucible.jobs.names import checked_job_id
from crucible.jobs.records import CodePackage, ForkedFrom, JobSpec, now
from crucible.local.continuing import CONFIGURED, SCRIPT, create_run, run_again, script_parameters
from crucible.run_config import RunConfig
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
    code: Path | None = None
    """A script's folder, packed anew; None: the code that the parent had."""


def fork_job(
    parent: Job,
    which: str = "",
    changes: Changes | None = None,
    name: str = "",
    report: Callable[[str], None] = lambda _: None,
) -> tuple[Job, str]:
    """Start a new job at a commit of `parent`; returns it, and the id of its flow run.

    `which`: a step, `best`, or empty for the newest. The checkpoint is copied before anything else, and nothing of the
    parent is written to. Where the server's answer gets lost (`StartUnknown`), the fork is kept, since its run may
    exist; the same fork under the same name then gives that run, or starts it. Raises `ConfigError` for a step that is
    not there, which lists those that are, for a change that the checkpoint forbids, and for what cannot travel of a
    folder. `report` is told what is uploaded of it.
    """
    before, changes = parent.read_spec(), changes or Changes()
    if before.evaluates:
        raise ConfigError(f"job {parent.job_id} evaluates {before.evaluates}: fork that one")
    checkpoints = Checkpoints(parent)
    chosen = choose_checkpoint(checkpoints, which, f"--from {which or 'newest'}")
    fork = Job(parent.root, name or _free_name(parent, chosen.shown_step))
    checked_job_id(fork.job_id)
    origin = ForkedFrom(job=parent.job_id, step=chosen.step, attempt=chosen.attempt)
    spec = _forked_spec(before, changes, chosen.step).model_copy(
        update={"job_id": fork.job_id, "forked_from": origin, "sweep": "", "created_at": now()}
    )
    packed = _packed(spec, changes.code) if changes.code else None
    if packed:
        spec = spec.model_copy(update={"code": _code(packed, before)})
    is_new = not fork.store.exists("job.json")
    if is_new:
        parent.root.require_guarantees()
        if packed:
            report(f"code      {counted(packed.package.files, 'file')} of {packed.selection.folder}")
            packed.upload(parent.root, report)
        with tempfile.TemporaryDirectory(prefix="crucible-fork-") as work:
            copy_checkpoint(checkpoints, chosen, fork, spec.config if spec.script is None else None, Path(work))
        Job.create(parent.root, spec)
    else:
        _require_awaiting_start(fork, spec)
    try:
        return fork, _start(parent, fork, fork.read_spec())
    except StartUnknown as error:
        raise StartUnknown(
            f"{error}. The fork is kept: crucible jobs show {fork.job_id}. If it does not start, fork again with "
            f"--name {fork.job_id} and the same options; that starts it once"
        ) from error
    except (ConfigError, ServiceError):
        if is_new:  # its name stays free, and its copy takes no room
            fork.delete()
        raise


def _require_awaiting_start(fork: Job, spec: JobSpec) -> None:
    """Raise `ConfigError` unless the job is this fork, of a call that did not learn whether its run was created."""
    made, wanted = (each.model_dump(mode="json", exclude={"created_at"}) for each in (fork.read_spec(), spec))
    if made != wanted:
        raise ConfigError(f"job: {fork.job_id!r} exists already; choose a new job name")
    if fork.read_newest_supervisor() is not None:
        raise ConfigError(f"job: {fork.job_id!r} is this fork and has been started: crucible jobs show {fork.job_id}")


def _forked_spec(before: JobSpec, changes: Changes, step: int) -> JobSpec:
    if before.script is None:
        if before.config is None:
            raise ConfigError(f"job {before.job_id} has neither a configuration nor a script; start a new job")
        if changes.command or changes.env or changes.code:
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
    given = {key: _read(key, value) if isinstance(value, str) else value for key, value in changes.settings.items()}
    command = {"command": list(changes.command)} if changes.command else {}
    env = {"env": {**before.env, **changes.env}}
    return ScriptConfig.parse({**before.model_dump(exclude_unset=True), **env, **command, **given})


def _read(name: str, text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except (yaml.YAMLError, ValueError) as error:  # ValueError: a 30th of February
        raise ConfigError(f"{name} = {text}: {' '.join(str(error).split())}") from None


def _packed(spec: JobSpec, folder: Path) -> PackedFolder:
    """The folder as `crucible run` packs it; data that the parent had travels anew where it is there."""
    assert spec.script is not None
    config = RunConfig.from_folder(folder, {"command": spec.script.command})
    had = [path for path in (spec.code.data if spec.code else {}) if (folder / path).exists()]
    packed = pack_folder(folder, config.include, list(dict.fromkeys([*config.data, *had])))
    dependencies = find_dependencies(packed.selection.folder, packed.selection.files, spec.script.dependencies)
    installs = bool(dependencies.file or spec.resources.image)
    check_command(spec.script.command, packed.selection, installs, here=False)
    return packed


def _code(packed: PackedFolder, before: JobSpec) -> CodePackage:
    data = before.code.data if before.code else {}
    return packed.record.model_copy(update={"data": {**data, **packed.record.data}})


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
    key = f"{fork.store.uri}/{spec.created_at.timestamp():.6f}"
    if spec.script is not None:
        changes |= script_parameters(parent, spec, spec.script, run)
    try:
        return run_again(f"job {parent.job_id}", run, flow, changes, key)
    except ConfigError:  # started by a program, a sweep, or on another server
        given = {**changes, "store": parent.root.uri, "project": spec.project, "owner": spec.owner}
        return _start_anew(flow, given, key)


def _start_anew(flow: str, parameters: dict[str, Any], key: str) -> str:
    try:
        with get_client(sync_client=True) as client:
            deployment = client.read_deployment_by_name(f"{flow}/{flow}")
            return create_run(client, deployment.id, key, parameters=parameters, name=parameters["job"])
    except ObjectNotFound as error:
        raise ServiceError(f"the server has no deployment {flow}/{flow}; run: crucible up") from error
    except (httpx.HTTPError, PrefectException) as error:
        raise ServiceError(f"the Prefect server did not start it: {error}; see crucible doctor") from error


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
