"""The checks of `crucible doctor` on each work pool: client library, credentials, service, worker."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import httpx

from crucible.doctor.checks import Check
from crucible.errors import ServiceError
from crucible.local import access
from crucible.local.pool_commands import COMMANDS
from crucible.local.services import POOL
from crucible.local.state import PROJECT, Home, State

ANSWER_SECONDS = 5


def docker_gpu() -> Check:
    """The docker engine and its GPU runtime."""
    if missing := _missing("docker-gpu", "docker", extra="docker"):
        return missing
    from crucible.pools.docker.engine import connect, gpu_runtime

    try:
        client = connect(timeout=ANSWER_SECONDS)
    except ServiceError as error:
        found, _, fix = str(error).partition(": ")
        return Check("docker-gpu", False, found, fix, local=False)
    info: dict[str, Any] = client.info()
    client.close()
    engine = f"docker {info['ServerVersion']}"
    if not gpu_runtime(info) and _is_for_the_cpu("docker-gpu"):
        return _with_worker(Check("docker-gpu", True, f"{engine}, on the CPU as the pool is set", local=False))
    if not gpu_runtime(info):
        fix = (
            "install the NVIDIA Container Toolkit, then: nvidia-ctk runtime configure && systemctl restart docker; "
            "or train on the CPU: crucible up --pool docker-gpu --gpus 0"
        )
        return Check("docker-gpu", False, f"{engine} has no GPU runtime", fix, local=False)
    return _with_worker(Check("docker-gpu", True, f"{engine} with GPUs", local=False))


def ec2(pool: str) -> Check:
    """Credentials that AWS accepts, and a region."""
    if missing := _missing(pool, "boto3", extra="aws"):
        return missing
    import boto3
    from botocore.config import Config
    from botocore.exceptions import BotoCoreError, ClientError

    session = boto3.Session()
    fix = "aws configure sso (or set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)"
    try:
        credentials = session.get_credentials()
    except BotoCoreError as error:  # the last place that boto3 looks at is the metadata service of an EC2 machine
        return Check(pool, False, f"no AWS credentials: {error}", fix, local=False)
    if credentials is None:
        return Check(pool, False, "no AWS credentials", fix, local=False)
    if session.region_name is None:
        return Check(pool, False, "no AWS region", "set AWS_DEFAULT_REGION, for example to us-east-1", local=False)
    quick = Config(connect_timeout=ANSWER_SECONDS, read_timeout=ANSWER_SECONDS, retries={"total_max_attempts": 1})
    try:
        account = session.client("sts", config=quick).get_caller_identity()["Account"]
    except (BotoCoreError, ClientError) as error:
        return Check(pool, False, f"AWS refuses the credentials or is out of reach: {error}", fix, local=False)
    return _with_worker(Check(pool, True, f"account {account}, region {session.region_name}", local=False))


def modal() -> Check:
    """Modal's token, and whether a sandbox can reach the API. The first sandbox shows whether the token is valid."""
    if missing := _missing("modal", "modal", extra="modal"):
        return missing
    from modal.config import config

    if not (config.get("token_id") and config.get("token_secret")):
        fix = "modal token new (or set MODAL_TOKEN_ID and MODAL_TOKEN_SECRET)"
        return Check("modal", False, "no Modal token", fix, local=False)
    check = _with_worker(Check("modal", True, f"token {config.get('token_id')}", local=False))
    return _with_way_back(check, str(config.get("server_url"))) if check.ready else check


def slurm() -> Check:
    """Slurm's commands here; a pool with a login node has them there, which its worker checks."""
    checked = _with_worker(Check("slurm", True, "Slurm's commands", local=False))
    if not checked.ready or shutil.which("sbatch") or _setting("slurm", "login_node"):
        return checked
    fix = "run the worker where sbatch works, or: crucible slurm setup --login-node user@host"
    return replace(checked, ready=False, found="sbatch is not on this machine", fix=fix)


def skypilot() -> Check:
    """SkyPilot's environment, its API server where one is named, and the pool's worker."""
    from crucible.pools.skypilot.environment import python_of, sky_command
    from crucible.pools.skypilot.failures import SkyMissing

    try:
        python_of()
    except SkyMissing as missing:
        found, _, fix = str(missing).rpartition("; run: ")
        return Check("skypilot", False, found, fix, local=False)
    checked = _with_worker(Check("skypilot", True, f"SkyPilot in {sky_command().parent.parent}", local=False))
    address = _setting("skypilot", "api_server") if checked.ready else None
    if not address:
        return checked
    try:
        version = httpx.get(f"{address}/api/health", timeout=ANSWER_SECONDS).raise_for_status().json().get("version")
    except (httpx.HTTPError, ValueError) as error:
        fix = "start it, or name another with: crucible sky pool --set api_server=…"
        return replace(checked, ready=False, found=f"SkyPilot's API server {address} does not answer: {error}", fix=fix)
    return replace(checked, found=f"{checked.found}, API server {address} of version {version}")


def _setting(pool: str, name: str) -> Any:
    """A setting that the pool was given when it was made."""
    from crucible.pools.common.offered import settings_of

    return settings_of(_template(pool)).get(name)


def _template(pool: str) -> dict[str, Any]:
    with access.connect_here(seconds=ANSWER_SECONDS) as api:
        found: dict[str, Any] = api.get(f"/work_pools/{pool}").raise_for_status().json()["base_job_template"]
    return found


def _with_way_back(check: Check, modal_url: str) -> Check:
    """Add whether a sandbox can reach the API under the address that the pool gives it, and strangers cannot."""
    from crucible.pools.common.offered import settings_of
    from crucible.pools.common.reach import FIX, is_here, obstacle

    api_url = State.load(Home.current()).api_url
    template = _template(check.name)
    made_with_prefect = template["variables"]["properties"].get("env", {}).get("default")  # which offers every variable
    environment = settings_of(template).get("env") or made_with_prefect or {}
    address = environment.get("PREFECT_API_URL") or api_url or ""
    if problem := obstacle(address, modal_url):
        return replace(check, ready=False, found=problem.removesuffix(f"; {FIX}"), fix=FIX)
    if is_here(modal_url):
        return check
    try:
        answer = httpx.get(f"{address}/admin/version", timeout=ANSWER_SECONDS)
    except httpx.HTTPError as error:
        return replace(check, ready=False, found=f"{address} does not answer: {error}", fix=FIX)
    if answer.is_success:
        fix = "set PREFECT_SERVER_API_AUTH_STRING for the server and PREFECT_API_AUTH_STRING for the worker"
        return replace(check, ready=False, found=f"{address} lets everyone in without a password", fix=fix)
    return replace(check, found=f"{check.found}, API at {address}")


def pools() -> list[Callable[[], Check]]:
    """The checks of all pools except `local`, which is ready when the checks of this machine are."""
    return [docker_gpu, partial(ec2, "ec2-spot"), partial(ec2, "ec2-on-demand"), modal, slurm, skypilot]


def local(machine: list[Check]) -> Check:
    """The row of the `local` pool, from the rows of this machine."""
    lacking = [check.name for check in machine if check.local and not check.ready]
    if lacking:
        return Check(POOL, False, f"needs: {', '.join(lacking)}", "see the rows above")
    return Check(POOL, True, "processes on this machine")


def _missing(pool: str, module: str, *, extra: str) -> Check | None:
    if importlib.util.find_spec(module):
        return None
    fix = f"pip install -c {PROJECT / 'constraints.txt'} '{PROJECT}[{extra}]'"
    return Check(pool, False, f"the {extra} extra is not installed", fix, local=False)


def _api_url() -> str | None:
    """The server that `prefect` reaches in this shell. Machines in a cloud cannot reach the local one."""
    return os.environ.get("PREFECT_API_URL") or State.load(Home.current()).api_url


def _is_for_the_cpu(name: str) -> bool:
    """Whether the pool is set to train without GPUs."""
    try:
        template = _template(name)
    except (httpx.HTTPError, httpx.InvalidURL):
        return False
    return bool(template["variables"]["properties"].get("gpus", {}).get("default") == "0")


def _with_worker(check: Check) -> Check:
    """Add whether the server has the pool, and a worker that polls it."""
    create, start = COMMANDS[check.name]
    api_url = _api_url()
    try:
        with access.connect_here(seconds=ANSWER_SECONDS) as api:
            pool = api.get(f"/work_pools/{check.name}")
            if pool.status_code == httpx.codes.NOT_FOUND:
                return replace(check, ready=False, found=f"{check.found}; the server has no such pool", fix=create)
            workers = api.post(f"/work_pools/{check.name}/workers/filter", json={}).raise_for_status().json()
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        found = f"{check.found}; no Prefect server to ask for the pool at {api_url}: {error}"
        return replace(check, ready=False, found=found, fix="crucible up, or set PREFECT_API_URL to your server")
    if not any(worker["status"] == "ONLINE" for worker in workers):
        return replace(check, ready=False, found=f"{check.found}; no worker polls the pool", fix=start)
    return check
