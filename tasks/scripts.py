"""A script of your own: its folder into the store, and on the attempt's machine out of it again."""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import httpx
from prefect.client.orchestration import get_client
from prefect.exceptions import ObjectNotFound, PrefectException
from prefect.runtime import flow_run
from pydantic import ValidationError

from crucible.adapter.copying import copy
from crucible.adapter.restoring import OUTPUT
from crucible.adapter.restoring import restore as put_back
from crucible.agent.nodes import Nodes
from crucible.agent.plan import Scratch, WorkloadCommand
from crucible.checkpoints.commits import Checkpoints
from crucible.checkpoints.restore import restore
from crucible.code.dockerfile import find_dockerfile
from crucible.code.environments import IMAGE_PATH, Dependencies, ensure_environment, find_dependencies, variables
from crucible.code.folder import pack_folder
from crucible.code.packing import archive_key
from crucible.code.workplace import place_data, unpack
from crucible.contract import Variable
from crucible.errors import ConfigError, ServiceError
from crucible.home import crucible_home, local_path
from crucible.jobs.job import Job
from crucible.jobs.records import CodePackage, JobSpec, Limits
from crucible.moments import moment_to_come
from crucible.run_config import RunConfig
from crucible.script_config import ScriptConfig, secret_block
from crucible.settings import explain_validation_error
from crucible.store import Store
from tasks.nodes import run_logger, torchrun

_DIGEST = re.compile(r"[0-9a-f]{64}")


def read_config(code: str, given: Mapping[str, Any]) -> RunConfig:
    """What was `given`, and where `code` is a folder of this machine the rest from its crucible.yaml.

    Raises `ConfigError` for a folder that is not there, and with one message for all settings that are wrong.
    """
    if not code or _DIGEST.fullmatch(code):
        return RunConfig.parse(given)
    return RunConfig.from_folder(local_path(code, "code"), given)


def read_config_again(code: str, given: Mapping[str, Any]) -> RunConfig:
    """The same for a flow run that may be started again: what it began is on record, and its folder may be gone."""
    try:
        return read_config(code, given)
    except ConfigError:
        if (flow_run.run_count or 0) > 1:
            return RunConfig.parse(given)
        raise


def job_limits(config: RunConfig, moment: datetime) -> Limits:
    """The limits of a job that starts at `moment`. Raises `ConfigError` for a `finish_by` that is no time."""
    hours = [] if config.max_hours is None else [config.max_hours]
    if config.finish_by:
        hours.append((moment_to_come(config.finish_by, moment) - moment).total_seconds() / 3600)
    return Limits(
        max_attempts=config.max_attempts, max_cost_usd=config.max_cost_usd, max_hours=min(hours, default=None)
    )


def resolve(
    store: Store, code: str, data: Mapping[str, str], config: RunConfig
) -> tuple[ScriptConfig, CodePackage | None]:
    """The complete script, and its code, which is in the store afterwards.

    `code`: a folder of this machine, or the digest of a package, with its `data`. Raises `ConfigError` for a folder
    that cannot travel, a digest that the store does not have, and no command.
    """
    script = config.script()
    if not code or _DIGEST.fullmatch(code):
        if code and not store.exists(archive_key(code)):
            raise ConfigError(f"code: there is no package {code[:12]} in {store.uri}; crucible run packs one")
        try:
            return script, CodePackage(digest=code, data=dict(data)) if code else None
        except ValidationError as error:
            raise ConfigError(explain_validation_error(error)) from None
    folder = local_path(code, "code")
    packed = pack_folder(folder, config.include, config.data)
    # A digest comes with the image that crucible run has built; here nobody would wait for a build.
    if built := find_dockerfile(config.dockerfile, packed.selection.files, config.pool, config.resources.image):
        raise ConfigError(
            f"code: {folder} has a {built}: start it with crucible run, which builds it, or name an image"
        )
    log = run_logger().info
    if left_out := packed.selection.describe_left_out():
        log("left out, because git or .crucibleignore says so: %s", left_out)
    return script, packed.upload(store, log)


def prepare_script(
    job: Job, spec: JobSpec, script: ScriptConfig, scratch: Scratch, nodes: Nodes | None = None
) -> WorkloadCommand:
    """Unpack the code, put its data in place, install its dependencies, and return the adapter that starts it.

    torchrun starts the script once for each process where `nodes` has several.
    """
    logger = run_logger()
    environment = {
        **spec.resources.visible_gpus(os.environ.get("CUDA_VISIBLE_DEVICES")),
        **spec.resources.environment,
        **script.env,
        **read_secrets(script.secrets, os.environ),
    }
    config = scratch.root / "script.json"
    config.write_text(_launched(script, nodes or Nodes()).model_dump_json(), encoding="utf-8")
    # -P: a module in the script's own folder must not stand in for one of the adapter's.
    command = [sys.executable, "-P", "-m", "crucible.adapter", "--script", str(config)]
    if spec.sweep:
        environment[Variable.SWEEP] = spec.sweep
    if spec.code is None:
        return WorkloadCommand(command, environment=_over({}, environment))
    cache, work = crucible_home() / "cache", scratch.root / "work"
    files = unpack(job.root, spec.code.digest, work)
    place_data(job.root, spec.code.data, work, cache / "data")
    if spec.prepared_by:
        _place_outputs(Job.open(job.root, spec.prepared_by), scratch, work)
    if spec.evaluates:
        environment[Variable.EVALUATE] = str(_place_checkpoint(Job.open(job.root, spec.evaluates), scratch, work))
    own_image = bool(os.environ.get(IMAGE_PATH))
    found = Dependencies("") if own_image else find_dependencies(work, files, script.dependencies)
    logger.info("dependencies: %s", "those of the image" if own_image else found)
    installed = ensure_environment(found, work, cache / "environments", logger.info)
    machine = variables(installed, cache, dict(os.environ))
    return WorkloadCommand(command, cwd=work, environment=_over(machine, environment))


def _over(installed: Mapping[str, str], own: Mapping[str, str]) -> dict[str, str]:
    """What the script has besides the machine's variables, its own first; the adapter and `import crucible` stay on the
    PYTHONPATH."""
    merged = {**installed, **own}
    machine = installed.get("PYTHONPATH") or os.environ.get("PYTHONPATH")
    if machine and "PYTHONPATH" in own:
        merged["PYTHONPATH"] = f"{own['PYTHONPATH']}{os.pathsep}{machine}"
    return merged


def _launched(script: ScriptConfig, nodes: Nodes) -> ScriptConfig:
    """The script, started by torchrun where there are several processes and it does not start them itself."""
    if nodes.count * nodes.processes == 1 or script.starts_processes:
        return script
    return script.model_copy(update={"command": torchrun(script.command)})


def _place_checkpoint(trained: Job, scratch: Scratch, work: Path) -> Path:
    """Put the newest checkpoint's files and the outputs of a job into a working directory; returns its folder."""
    found = restore(Checkpoints(trained), scratch.root / "evaluates")
    if found is None:
        raise ConfigError(f"evaluate: {trained.job_id} has no checkpoint; name what it saves in checkpoint: or output:")
    script = trained.read_spec().script
    if script is not None and script.checkpoint is not None:
        put_back(found[1], work, script.checkpoint)
    if (found[1] / OUTPUT).is_dir():
        copy(found[1] / OUTPUT, work)
    return found[1]


def _place_outputs(prepared: Job, scratch: Scratch, work: Path) -> None:
    """Put the outputs of a job into a working directory. Raises `ConfigError` where it has none."""
    found = restore(Checkpoints(prepared), scratch.root / "prepared")
    if found is None or not (found[1] / OUTPUT).is_dir():
        raise ConfigError(f"preprocess: {prepared.job_id} has left no output; name it in preprocess: {{output: …}}")
    copy(found[1] / OUTPUT, work)


def read_secrets(names: Sequence[str], machine: Mapping[str, str]) -> dict[str, str]:
    """The values of secrets: from Prefect's Secret blocks, else from the machine's environment.

    Raises `ConfigError` naming those that neither has, `ServiceError` when the server does not answer, and the machine
    has not all of them: an attempt may have no server in reach.
    """
    found, missing = {}, []
    away: ServiceError | None = None
    for name in names:
        try:
            block = _read_block(secret_block(name)) if away is None else None
        except ServiceError as error:
            block, away = None, error
        value = block or machine.get(name)
        if value is None:
            missing.append(name)
        else:
            found[name] = value
    if missing and away is not None:
        raise ServiceError(f"secrets: {', '.join(missing)}: not among this machine's variables, and {away}")
    if missing:
        raise ConfigError(
            f"secrets: {', '.join(missing)}: there is no Secret block {', '.join(map(secret_block, missing))} on the "
            f"Prefect server, and no such variable on this machine; save one: crucible secret set {missing[0]}"
        )
    return found


def _read_block(name: str) -> str | None:
    try:
        with get_client(sync_client=True) as client:
            document = client.read_block_document_by_name(name, "secret", include_secrets=True)
    except ObjectNotFound:
        return None
    except (httpx.HTTPError, PrefectException) as error:
        raise ServiceError(f"the Prefect server did not answer for the secret block {name}: {error}") from error
    return str(document.data["value"])
