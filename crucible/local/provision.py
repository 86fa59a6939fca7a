"""What the server needs before a run can start: the `local` pool, our blocks, the deployments of prefect.yaml."""

from __future__ import annotations

import hashlib
import subprocess
import sys
from pathlib import Path

import httpx
import yaml

from crucible.container import total_memory_bytes, usable_cpus
from crucible.errors import ServiceError
from crucible.local.services import POOL, POOL_TYPE, last_line, service_environment
from crucible.local.state import Home
from crucible.pools import kubernetes
from crucible.pools.aws import pools as aws
from crucible.pools.docker import pool as docker
from crucible.pools.modal import pool as modal
from crucible.pools.skypilot import pool as skypilot
from crucible.pools.slurm import pool as slurm
from crucible.store import default_store_uri

SOURCES = ("flows", "tasks", "blocks", "deployments", "infrastructure", "crucible")
DIGEST_VARIABLE = "crucible_deployed_digest"
"""A Prefect variable: kept by the server itself, so that a new or reset server is deployed to again."""
TIMEOUT_SECONDS = 180.0
_FOR_ATTEMPTS = {
    name: {"title": name.replace("_", " "), "description": "For a job's attempts on a pool that has this variable."}
    for name in sorted({name for pool in (docker, aws, modal, slurm, skypilot, kubernetes) for name in pool.OFFERED})
}
POOL_TEMPLATE = {
    "job_configuration": {"stream_output": True},
    "variables": {"type": "object", "properties": _FOR_ATTEMPTS, "required": [], "additionalProperties": False},
}
"""No variable has a place in the job configuration: a run says what to train, not which command runs on this machine,
nor with which environment. Supervising runs pass theirs on to the attempts (`tasks.job_variables`)."""


SUPERVISOR_GIB, ATTEMPT_GIB = 0.2, 0.75
"""What one of them is expected to take, the trainer of an attempt included."""


def ensure_pool(api: httpx.Client) -> None:
    """Create the `local` work pool and its queues, or give one that an earlier version made today's template."""
    found = api.get(f"/work_pools/{POOL}")
    if found.status_code == httpx.codes.NOT_FOUND:
        pool = {"name": POOL, "type": POOL_TYPE, "description": "Processes on this machine."}
        found = api.post("/work_pools/", json={**pool, "base_job_template": POOL_TEMPLATE})
        if found.status_code == httpx.codes.CONFLICT:  # a worker has created it meanwhile
            found = api.get(f"/work_pools/{POOL}")
    if found.raise_for_status().json()["base_job_template"] != POOL_TEMPLATE:
        api.patch(f"/work_pools/{POOL}", json={"base_job_template": POOL_TEMPLATE}).raise_for_status()
    for name, slots in queue_slots(total_memory_bytes() / 2**30, usable_cpus()).items():
        if api.get(f"/work_pools/{POOL}/queues/{name}").status_code == httpx.codes.NOT_FOUND:  # a person's own stays
            waiting = (
                f"{slots} {name} at a time, for this machine's memory and cores; further runs wait here for a slot."
            )
            queue = {"name": name, "concurrency_limit": slots, "description": waiting}
            created = api.post(f"/work_pools/{POOL}/queues", json=queue)
            if created.status_code != httpx.codes.CONFLICT:
                created.raise_for_status()


def queue_slots(memory_gib: float, cores: int) -> dict[str, int]:
    """How many supervisors and how many attempts this machine carries at a time, by queue.

    They are counted apart: a supervisor that waits for its attempt must not hold a slot that the attempt needs.
    Supervisors may take a quarter of the memory, attempts half of it.
    """
    supervisors = max(4, int(memory_gib / 4 / SUPERVISOR_GIB))
    return {"supervisors": supervisors, "attempts": max(1, min(cores, int(memory_gib / 2 / ATTEMPT_GIB)))}


def is_current(api: httpx.Client, project: Path) -> bool:
    """Whether the server has every deployment of the project, made from the sources as they are now."""
    names = deployment_names(project)
    variable = api.get(f"/variables/name/{DIGEST_VARIABLE}")
    if not variable.is_success or variable.json()["value"] != source_digest(project):
        return False
    deployed = api.post("/deployments/filter", json={}).raise_for_status().json()
    return names <= {deployment["name"] for deployment in deployed}


class Deploying:
    """The process that registers blocks and deploys, from its start to its end."""

    def __init__(self, home: Home, project: Path, api_url: str) -> None:
        self.project, self.log = project, home.log("deploy")
        self.digest = source_digest(project)
        with self.log.open("wb") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "blocks.deploy", "--no-prompt", "deploy", "--all"],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                cwd=project,
                env=service_environment(home, api_url),
            )

    def finish(self, api: httpx.Client) -> None:
        """Wait for the end and remember on the server what was deployed. Raises `ServiceError` if it failed."""
        try:
            failed = self.process.wait(TIMEOUT_SECONDS) != 0
        except subprocess.TimeoutExpired:
            self.process.kill()
            failed = True
        if failed:
            raise ServiceError(
                f"Deploying {self.project / 'prefect.yaml'} failed: {last_line(self.log)}; see {self.log}, "
                "fix that, then run: crucible up"
            )
        variable = {"name": DIGEST_VARIABLE, "value": self.digest}
        if api.patch(f"/variables/name/{DIGEST_VARIABLE}", json=variable).status_code == httpx.codes.NOT_FOUND:
            api.post("/variables/", json=variable).raise_for_status()


def source_digest(project: Path) -> str:
    """A digest of everything that decides what a deployment looks like: prefect.yaml, the code and the store."""
    digest = hashlib.sha256(default_store_uri().encode())
    found = [path for folder in SOURCES for path in (project / folder).rglob("*") if path.suffix in (".py", ".yaml")]
    files = [
        path for path in found if path.is_file()
    ]  # an editor's lock is a link to nothing, such as Emacs's .#train.py
    for path in [project / "prefect.yaml", *sorted(files)]:
        digest.update(f"\0{path.relative_to(project)}\0".encode() + path.read_bytes())
    return digest.hexdigest()


def deployment_names(project: Path) -> set[str]:
    """The names in the project's prefect.yaml. Raises `ServiceError` if it is missing or malformed."""
    path = project / "prefect.yaml"
    try:
        deployments = yaml.safe_load(path.read_text(encoding="utf-8"))["deployments"]
        return {deployment["name"] for deployment in deployments}
    except FileNotFoundError:
        raise ServiceError(f"{path} does not exist; name the folder that holds it with --project") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ServiceError(f"{path} cannot be read: {getattr(error, 'strerror', None) or 'it is no text'}") from error
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise ServiceError(f"{path} is not a list of deployments with a name each: {error}") from error
