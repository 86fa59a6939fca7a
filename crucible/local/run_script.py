"""Start a script of your own: check what can be checked, carry the folder into the store, start `train-script`.

run = plan_run(config, folder, job="first")       # nothing has left the folder yet
with access.connect_here() as api:
    require_ready(api, run)
    flow_run = start_run(api, run)
"""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import httpx

from crucible.catalog.offers import TRIED_ANYWAY
from crucible.code.command import check_command
from crucible.code.dockerfile import find_dockerfile
from crucible.code.environments import Dependencies, find_dependencies
from crucible.code.folder import PackedFolder, pack_folder
from crucible.errors import ConfigError, ServiceError
from crucible.jobs.names import checked_job_id, new_job_id
from crucible.jobs.records import now
from crucible.local.access import unreachable
from crucible.local.flow_runs import start_flow_run
from crucible.local.pool_commands import COMMANDS
from crucible.moments import moment_to_come
from crucible.placement.script import place_script
from crucible.run_config import RunConfig
from crucible.script_config import ScriptConfig, secret_block
from crucible.store import STORE_BLOCK, Store, store_at, store_of_block

DEPLOYMENT = "train-script"


@dataclass(frozen=True)
class ScriptRun:
    """A run that has passed every check this machine can do by itself."""

    job: str
    config: RunConfig
    script: ScriptConfig
    packed: PackedFolder
    dependencies: Dependencies
    dockerfile: str = ""
    """What the image of the attempts is built from; empty: the pool's image, or the one in `resources`."""

    @property
    def deployment(self) -> str:
        """What starts it."""
        return DEPLOYMENT

    @property
    def pools(self) -> list[str]:
        """Every pool that it needs, each once."""
        before = [self.config.preprocess.pool] if self.config.preprocess and self.config.preprocess.pool else []
        after = self.config.evaluate.pools if self.config.evaluate else []
        return list(dict.fromkeys([*before, self.config.pool, *after]))

    def parameters(self) -> dict[str, Any]:
        """What the deployment `train-script` is given."""
        config, code = self.config, self.packed.record
        return {
            "command": shlex.join(self.script.command),
            "code": code.digest,
            "data": code.data,
            "script": self.script.model_dump(mode="json", exclude_defaults=True, exclude={"command"}),
            "preprocess": config.preprocess.model_dump(mode="json") if config.preprocess else None,
            "evaluate": config.evaluate.model_dump(mode="json") if config.evaluate else None,
            "pool": config.pool,
            "resources": config.resources.model_dump(mode="json", exclude_defaults=True),
            "job": self.job,
            "max_attempts": config.max_attempts,
            "max_cost_usd": config.max_cost_usd,
            "max_hours": config.max_hours,
            "finish_by": config.finish_by,
            "tracker": ",".join(config.tracker),
            "project": config.project,
            "owner": config.owner,
            "store": config.store,
        }


def job_name(config: RunConfig, folder: Path) -> str:
    """A new name: of the configuration or the folder, and the time."""
    base = re.sub(r"[^A-Za-z0-9._-]+", "-", config.name or folder.resolve().name).strip("-.") or "script"
    return new_job_id(base)


def plan_run(config: RunConfig, folder: Path, job: str = "") -> ScriptRun:
    """Check and pack. Raises `ConfigError` with the first thing that is wrong; nothing has been started by then."""
    script = config.script()
    checked_job_id(name := job or job_name(config, folder))
    place_script(config.pool, config.resources)  # a pool that the catalog cannot place is refused here
    if config.finish_by:
        moment_to_come(config.finish_by, now())
    packed = pack_folder(folder, config.include, config.data)
    if script.dependencies and script.dependencies != "none" and script.dependencies not in packed.selection.files:
        raise ConfigError(f"dependencies: {script.dependencies} is not among the files that travel")
    dependencies = find_dependencies(packed.selection.folder, packed.selection.files, script.dependencies)
    dockerfile = find_dockerfile(config.dockerfile, packed.selection.files, config.pool, config.resources.image)
    installs = bool(dependencies.file or dockerfile)
    check_command(script.command, packed.selection, installs, config.pool == "local")
    for stage in (config.preprocess, config.evaluate):
        if stage:
            check_command(stage.command, packed.selection, installs, here=False)
    return ScriptRun(name, config, script, packed, dependencies, dockerfile)


def require_ready(api: httpx.Client, run: ScriptRun) -> None:
    """Raise `ConfigError` or `ServiceError` unless the server can start the run: deployment, pools and workers."""
    for pool in run.pools:
        _require_pool(api, pool, run.deployment)
    try:
        _require_secrets(api, run.config)
    except httpx.HTTPError as error:
        raise unreachable(api, error) from error


def _require_pool(api: httpx.Client, pool: str, started_by: str) -> None:
    try:
        found = api.get(f"/work_pools/{pool}")
        if found.status_code == httpx.codes.NOT_FOUND:
            known = sorted(entry["name"] for entry in api.post("/work_pools/filter", json={}).raise_for_status().json())
            fix = f"; {COMMANDS[pool][0]} makes it" if pool in COMMANDS else f"; it has {', '.join(known)}"
            raise ConfigError(f"pool: the server has no pool {pool!r}{fix}")
        if found.raise_for_status().json()["is_paused"]:
            raise ConfigError(f"pool: {pool} is paused; run: prefect work-pool resume {pool}")
        workers = api.post(f"/work_pools/{pool}/workers/filter", json={}).raise_for_status().json()
        if not any(worker["status"] == "ONLINE" for worker in workers):
            start = COMMANDS[pool][1] if pool in COMMANDS else "crucible up"
            raise ConfigError(f"pool: no worker polls {pool}; start one: {start}")
        for deployment in (f"{started_by}/{started_by}", f"train/{pool}"):
            if api.get(f"/deployments/name/{deployment}").status_code == httpx.codes.NOT_FOUND:
                raise ServiceError(f"the server has no deployment {deployment}; run: crucible up")
    except httpx.HTTPError as error:
        raise unreachable(api, error) from error


def open_store(api: httpx.Client, reference: str) -> Store:
    """The store of that address or `Store` block, where the run will look for its code. Raises `ConfigError`."""
    if "://" in reference or reference.startswith("/"):
        return store_at(reference)
    found = api.get(
        f"/block_types/slug/{STORE_BLOCK}/block_documents/name/{reference}", params={"include_secrets": True}
    )
    if found.status_code == httpx.codes.NOT_FOUND:
        raise ConfigError(f"store: there is no Store block {reference!r} on the server; crucible up makes 'default'")
    return store_of_block(found.raise_for_status().json()["data"])


def require_reachable(store: Store, pool: str) -> None:
    """Raise `ConfigError` for a folder of this machine that a pool elsewhere cannot read."""
    if pool not in TRIED_ANYWAY and store.uri.startswith("file:"):
        raise ConfigError(
            f"store: {store.uri} is a folder of this machine, which {pool} cannot reach; give an s3:// store, such as "
            "--store aws after crucible aws up"
        )


def start_run(api: httpx.Client, run: ScriptRun, report: Callable[[str], None] = lambda _: None) -> str:
    """Carry what the store does not have yet, and start its deployment; returns the flow run's id."""
    store = open_store(api, run.config.store)
    require_reachable(store, run.config.pool)
    store.require_guarantees()
    if run.dockerfile:
        run = with_image(run, report)
    run.packed.upload(store, report)
    return start_flow_run(api, run.deployment, run.parameters(), run.job)


def with_image(run: ScriptRun, report: Callable[[str], None] = lambda _: None) -> ScriptRun:
    """The same run, in the image of its Dockerfile: built here, and pushed to the AWS stack's repository for EC2."""
    from crucible.pools.docker import own_image, registry
    from crucible.pools.docker.images import build

    recipe = own_image.own_recipe(run.packed.selection.folder, run.dockerfile, report)
    image = build(recipe, report)
    if run.config.pool != "docker-gpu":
        repository = registry.stack_repository("crucible", None, None)
        login = registry.ecr_login(repository) if registry.is_ecr(repository) else None
        image = registry.push(recipe, repository, login, report)
    resources = run.config.resources.model_copy(update={"image": image})
    return replace(run, config=run.config.model_copy(update={"resources": resources}))


def _require_secrets(api: httpx.Client, config: RunConfig) -> None:
    missing = []
    for name in config.secrets:
        block = secret_block(name)
        found = api.get(f"/block_types/slug/secret/block_documents/name/{block}")
        if found.status_code == httpx.codes.NOT_FOUND:
            missing.append(name)
    # The worker of the pool `local` has the environment of `crucible up`, which this shell cannot look into.
    missing = [name for name in missing if config.pool != "local" or name not in os.environ]
    if missing:
        raise ConfigError(
            f"secrets: {', '.join(missing)}: there is no Secret block {', '.join(map(secret_block, missing))} on the "
            f"server; save it: crucible secret set {missing[0]}"
        )
