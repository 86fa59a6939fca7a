"""A whole rehearsal: the cloud, the stack in it, both pools on a Prefect server, a worker for each."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from crucible.errors import ServiceError
from crucible.home import crucible_home
from crucible.local.state import PROJECT
from crucible.pools.aws.pools import ON_DEMAND, SPOT
from crucible.pools.aws.stack import StackState
from crucible.pools.aws.worker import worker_command, worker_environment
from crucible.rehearsal.aws.client import AwsRehearsal, RehearsalError

STATE_FILE = "rehearsal-aws.json"
PARAMETERS = {"MaxSpotInstances": "4", "MaxOnDemandInstances": "4", "Owner": "rehearsal"}


@contextmanager
def rehearsed_aws(
    *,
    folder: Path | None = None,
    environment: Mapping[str, str] | None = None,
    project: Path | None = None,
    say: Callable[[str], None] = lambda _: None,
    **settings: Any,
) -> Iterator[AwsRehearsal]:
    """Bring all of it up on the Prefect server that `environment` (default: this process's) leads to; down at the end.

    `settings` as in `crucible.rehearsal.aws.settings.Settings`. Raises `CrucibleError` if no server answers or a part
    does not start.
    """
    given = dict(os.environ if environment is None else environment)
    place = folder or crucible_home() / "rehearsal" / "aws"
    project = project or PROJECT
    with ExitStack() as stack:
        say("Bringing up an AWS on this machine")
        cloud = stack.enter_context(AwsRehearsal.start(place, working_directory=project, **settings))
        state_file = crucible_home() / STATE_FILE
        state_file.parent.mkdir(parents=True, exist_ok=True)
        state_file.unlink(missing_ok=True)
        state_file.touch(mode=0o600)  # whoever has the key can start commands here
        state_file.write_text(json.dumps({"control_url": cloud.control_url, **cloud.environment}))
        stack.callback(state_file.unlink, missing_ok=True)
        say("Deploying the stack into it")
        state = cloud.deploy(parameters=PARAMETERS | prefect_secret(cloud, prefect_password(given)))
        stack.enter_context(serving_pools(cloud, state, given, project=project, say=say))
        yield cloud


def prefect_secret(cloud: AwsRehearsal, password: str | None) -> dict[str, str]:
    """The stack's parameter for the password of the Prefect server, which is put into the cloud's Secrets Manager."""
    return {"PrefectAuthSecretArn": cloud.store_secret("prefect", password)} if password else {}


def prefect_password(environment: Mapping[str, str]) -> str | None:
    """The password that `environment` or the selected Prefect profile has for the server."""
    from prefect.settings import get_current_settings

    secret = get_current_settings().api.auth_string
    return environment.get("PREFECT_API_AUTH_STRING") or (secret.get_secret_value() if secret else None)


@contextmanager
def serving_pools(
    cloud: AwsRehearsal,
    state: StackState,
    environment: Mapping[str, str],
    *,
    project: Path,
    say: Callable[[str], None] = lambda _: None,
) -> Iterator[None]:
    """Both pools of a deployed stack on the Prefect server that `environment` leads to, with a worker each."""
    within = {**environment, **cloud.environment}
    with ExitStack() as stack:
        say("Putting its pools on the Prefect server")
        _register(within, state.name, project)
        for pool in (SPOT, ON_DEMAND):
            say(f"Starting the worker of {pool}")
            with (cloud.settings.folder / f"worker-{pool}.log").open("ab") as output:
                worker = subprocess.Popen(
                    worker_command(pool),
                    env={**within, **worker_environment(state)},
                    cwd=project,
                    stdin=subprocess.DEVNULL,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    start_new_session=True,
                )
            stack.callback(_stop, worker)
        yield


def running_control_url() -> str:
    """Where the rehearsal listens that was started with `crucible rehearse aws`. Raises `RehearsalError`."""
    try:
        return str(json.loads((crucible_home() / STATE_FILE).read_text())["control_url"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise RehearsalError("no rehearsal is running: start one with `crucible rehearse aws`") from error


def _register(environment: Mapping[str, str], stack_name: str, project: Path) -> None:
    """`crucible aws pools`, in a process whose Prefect and AWS are those of `environment`."""
    command = [sys.executable, "-m", "crucible.cli.main", "aws", "pools", "--stack", stack_name]
    done = subprocess.run(command, env=dict(environment), cwd=project, capture_output=True, text=True, check=False)
    if done.returncode or "is ready" not in done.stdout:
        raise ServiceError(f"the pools could not be registered: {(done.stderr or done.stdout).strip()}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(20)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
