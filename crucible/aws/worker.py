"""The Prefect worker of an AWS pool, started with what prefect-aws takes only from the environment.

Its observer wants the event queue's name and a region in environment variables and silently does nothing without them;
its fence (`crucible.aws.observer`) must be in the same process. `python -m crucible.aws.worker` is `prefect` with the
fence in place.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Mapping

from crucible.aws.stack import StackState


def worker_environment(state: StackState, profile: str | None = None) -> dict[str, str]:
    """What the worker's environment needs beyond the usual: the queue, the region, cancellation of waiting runs."""
    environment = {
        "PREFECT_INTEGRATIONS_AWS_ECS_OBSERVER_SQS_QUEUE_NAME": state.outputs["TaskEventsQueue"],
        "PREFECT_WORKER_ENABLE_CANCELLATION": "true",
        "AWS_DEFAULT_REGION": state.region,
        "AWS_REGION": state.region,
    }
    return environment | ({"AWS_PROFILE": profile} if profile else {})


def worker_command(pool: str) -> list[str]:
    """The command line that runs a worker of `pool`."""
    return [sys.executable, "-m", "crucible.aws.worker", "worker", "start", "--pool", pool, "--type", "ecs"]


def run_worker(pool: str, state: StackState, profile: str | None = None) -> None:
    """Become the pool's worker: replaces this process, so that signals reach it. Does not return."""
    environment: Mapping[str, str] = {**os.environ, **worker_environment(state, profile)}
    command = worker_command(pool)
    os.execve(command[0], command, dict(environment))


def main() -> None:
    """`prefect`, with the observer fenced."""
    from prefect.cli import app

    from crucible.aws import observer

    observer.install()
    sys.argv[0] = "prefect"
    app()


if __name__ == "__main__":
    main()
